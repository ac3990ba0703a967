"""The one road of a call: limits, authentication, validation, authorisation, audit intent, handler, commit, outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

from google.protobuf.message import Message
from prometheus_client import REGISTRY, CollectorRegistry

from kubegems.policy.v1 import policy_pb2
from libs import log
from libs.clock import new_id
from libs.faults import DeadlineExceeded, Fault, Internal, Unavailable
from libs.log import trace
from libs.rpc import deadline, deprecation, fields, validation
from libs.rpc.authorisation import Authorisation, Authorise, same_as_missing
from libs.rpc.call import Call, Caller, Method
from libs.rpc.metrics import CallMetrics
from libs.rpc.peers import by_peer, trusted
from libs.rpc.protocols import Audit, Limiter, Units, WorkUnit
from libs.rpc.recording import Recording

__all__ = ["Pipeline"]
_Rule = policy_pb2.Rule
_log = log.get("libs.rpc")
_USER = _Rule.USER
_ANONYMOUS = (_Rule.PUBLIC, _Rule.REFRESH, _Rule.JOIN_TOKEN)
UNARY_SECONDS = 60.0  # for callers that set no deadline
Given = Message | Callable[[], Message | Awaitable[Message]]
Authenticate = Callable[[Call], Awaitable[Caller]]


class Plan:
    """What is known of a method before any call."""

    def __init__(self, method: Method, metrics: CallMetrics) -> None:
        descriptor, rule = method.descriptor.input_type, method.rule
        self.method, self.rule = method, rule
        self.checks = validation.checks(descriptor)
        paths = dict.fromkeys([*rule.scope, *fields.resource_paths(descriptor)])
        self.resources = [fields.getter(descriptor, path) for path in paths]
        self.metrics = metrics.method(method)
        self.name = method.path[1:]
        self.quiet = rule.audit in (_Rule.READ, _Rule.NONE)
        self.headers = deprecation.headers(rule)


class Pipeline:
    """Runs calls of a set of methods, for every transport.

    Args:
        methods: what is served.
        authenticate: who a USER is; raises Unauthenticated. Without it USER methods are refused.
        peers: who a certificate's holder is, for AGENT_CERT and SERVICE_CERT.
        authorise: raises when the caller may not; by default rights are held against the scope fields.
        limiter: rate limits, if any.
        units: transactions, if any.
        audit: records outside of transactions, if any.
        translate: turns a library's exception into a Fault, or None for what is a mistake of ours.
        registry: where the metrics go.
    """

    def __init__(
        self,
        methods: Iterable[Method],
        *,
        authenticate: Authenticate | None = None,
        peers: Authenticate = by_peer,
        authorise: Authorise | None = None,
        limiter: Limiter | None = None,
        units: Units | None = None,
        audit: Audit | None = None,
        translate: Callable[[Exception], Fault | None] | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.methods = list(methods)
        metrics = CallMetrics.of(registry)
        self._plans = {m.path: Plan(m, metrics) for m in self.methods}
        self._authenticate, self._peers = authenticate, peers
        self._authorise = authorise or Authorisation(self.methods)
        self._limiter, self._units = limiter, units
        self._record = Recording(audit)
        self._translate = translate

    def method(self, path: str) -> Method | None:
        """The method at `/package.Service/Method`."""
        plan = self._plans.get(path)
        return plan.method if plan else None

    async def unary(self, call: Call, request: Given) -> Any:
        """Runs a unary call; raises Fault, or CancelledError when the caller has gone.

        A request may be given as the function that reads it, raising Invalid; it runs only for callers who are let in, so that
        nobody else's bytes are even taken off the wire.
        """
        plan = self._plans[call.method.path]
        seconds = UNARY_SECONDS if call.timeout is None else max(0.0, call.timeout)
        with self._observed(plan, call), deadline.within(seconds):
            work = _Work(plan, call, request)
            try:
                async with asyncio.timeout(seconds) as clock:
                    reply = await self._until_handled(work)
                return await self._commit(work, reply)
            except BaseException as error:
                timed_out = isinstance(error, TimeoutError) and clock.expired()
                fault = await self._ended(work, DeadlineExceeded("the call took too long") if timed_out else error)
                if fault is error:
                    raise
                raise fault from error
            finally:
                self._release(work)

    async def stream(self, call: Call, request: Given, *, announce: bool = False) -> AsyncGenerator[Any, None]:
        """Runs a server stream; iterate and close it in one task. With `announce` its first item is None, once the call is let in."""
        plan = self._plans[call.method.path]
        with self._observed(plan, call), deadline.within(call.timeout):
            work = _Work(plan, call, request)
            clock: asyncio.Timeout | None = None
            try:
                async with asyncio.timeout(deadline.remaining(UNARY_SECONDS)) as clock:
                    message = await self._admit(work)
                    await self._record.begin(call, message)
                work.handling = True
                if announce:
                    yield None
                async with asyncio.timeout(deadline.left()) as clock, aclosing(_items(plan.method, message, call)) as items:
                    async for item in items:
                        yield item
                await self._record.stream_ended(call, message, None)
            except GeneratorExit:
                if work.handling:
                    await self._record.stream_ended(call, message, None)
                raise
            except BaseException as error:
                timed_out = isinstance(error, TimeoutError) and clock is not None and clock.expired()
                fault = await self._ended(work, DeadlineExceeded("the stream's time is up") if timed_out else error)
                if fault is error:
                    raise
                raise fault from error
            finally:
                self._release(work)

    async def _until_handled(self, work: _Work) -> Any:
        call, request = work.call, await self._admit(work)
        if self._units is not None and not work.plan.method.forwarded:
            work.unit = call.unit = self._units.open(call)
            if not work.plan.quiet and call.upload is None:  # whose bytes, not known yet, might be others than those answered before
                replayed = await work.unit.replay(call, request)
                if replayed is not None:
                    work.replayed = True
                    call.response_headers["kubegems-replayed"] = "true"
                    return replayed
        await self._record.begin(call, request)
        work.handling = True
        return await work.plan.method.handler(request, call)  # type: ignore[misc] # unary, as its kind says

    async def _admit(self, work: _Work) -> Message:
        """Who calls, how often, with what, and whether they may. What the limiter refuses leaves no record, or a flood would."""
        call, plan, limiter = work.call, work.plan, self._limiter
        if limiter is not None:
            limiter.address(call)
        work.counted = True
        await self._identify(call)
        if limiter is not None:
            work.counted = False
            limiter.caller(call)
            work.held = work.counted = True
        request = await work.read()
        if call.caller.id:
            fields.replace_me(request, call)
        call.resources = list(dict.fromkeys(name for read in plan.resources for name in read(request)))
        call.tenant = fields.tenant_of(call.resources)
        validation.run(plan.checks, request)
        await self._authorise(call, request)
        work.admitted = True
        if limiter is not None:
            work.counted = False
            work.leave = await limiter.turn(call)
            work.counted = True
        return request

    async def _identify(self, call: Call) -> None:
        auth = call.method.rule.auth
        if auth in _ANONYMOUS:
            return
        authenticate = self._authenticate if auth == _USER else self._peers
        if authenticate is None:
            raise Internal(f"nobody authenticates callers of {call.method.path}")
        call.caller = await authenticate(call)

    async def _commit(self, work: _Work, reply: Any) -> Any:
        call, request, unit = work.call, work.request, work.unit
        assert request is not None, "it was handled"
        work.committing = True
        if unit is not None and work.replayed:
            await unit.rollback()
        elif unit is not None:
            await unit.commit(call, request, reply)
        work.committed = True
        await self._record.done(call, request, replayed=work.replayed)
        return reply

    async def _ended(self, work: _Work, error: BaseException) -> BaseException:
        """Rolls back and records; what the caller gets to see."""
        if work.committed:
            return error
        fault = self._fault(work, error)
        if work.unit is not None:
            await self._record.safely(work.unit.rollback(), "unit.rollback_failed")
        if work.counted and not (isinstance(fault, asyncio.CancelledError) and work.committing):
            await self._record.failed(work.call, work.request, fault, handled=work.handling, admitted=work.admitted)
        if isinstance(fault, Fault) and self._limiter is not None and fault.code.name == "UNAUTHENTICATED":
            self._limiter.failed(work.call)
        return fault

    def _fault(self, work: _Work, error: BaseException) -> BaseException:
        if isinstance(error, Fault):
            return same_as_missing(error)
        if isinstance(error, asyncio.CancelledError):
            return error if _being_cancelled() else Unavailable("interrupted; try again", {"cause": "CANCELLED_INSIDE"})
        if not isinstance(error, Exception):
            return error
        fault = self._translate(error) if self._translate is not None else None
        if fault is not None:
            return fault
        if isinstance(error, (ConnectionError, TimeoutError)):
            _log.warning("rpc.part_away", method=work.plan.name, exc_info=error)
            return Unavailable("a part that this call needs is away; try again")
        return self._crashed(work, error)

    def _crashed(self, work: _Work, error: Exception) -> Internal:
        correlation = work.call.request_id or new_id().hex
        _log.error("rpc.crashed", method=work.plan.name, correlation=correlation, exc_info=error)
        return Internal(f"internal error; tell the operator this id: {correlation}", {"correlation": correlation})

    def _release(self, work: _Work) -> None:
        if self._limiter is None:
            return
        if work.leave is not None:
            work.leave()
        if work.held:
            self._limiter.release(work.call)

    @contextmanager
    def _observed(self, plan: Plan, call: Call) -> Iterator[None]:
        known = trusted(call)
        code = "OK"
        attributes = {"kubegems.transport": call.transport}
        parent, link = (call.traceparent, None) if known else (None, call.traceparent)
        ended: BaseException | None = None
        with trace.span(plan.name, parent=parent, link=link, kind=trace.SpanKind.SERVER, attributes=attributes) as span:
            call.response_headers["kubegems-trace-id"] = trace.current_trace_id()
            if plan.headers:
                call.response_headers |= plan.headers
            plan.metrics.open.inc()
            try:
                yield
            except BaseException as error:  # noqa: BLE001 -- raised again outside of the span, which would keep its text
                ended = error
                code = error.code.name if isinstance(error, Fault) else "CANCELLED"
            self._observe(plan, call, code, span)
        if ended is not None:
            raise ended

    def _observe(self, plan: Plan, call: Call, code: str, span: trace.Span) -> None:
        seconds = time.monotonic() - call.started
        plan.metrics.open.dec()
        plan.metrics.ended(code, call.transport, None if plan.method.streams else seconds)
        if code == "OK" and plan.quiet:
            return
        span.set_attribute("rpc.status", code)
        if code in ("INTERNAL", "UNKNOWN", "DATA_LOSS"):
            trace.fail(span, code)
        _log.info(
            "rpc.done", method=plan.name, code=code, caller=call.caller.name, transport=call.transport,
            request_id=call.request_id, took_ms=round(seconds * 1000, 1),
        )  # fmt: skip


def _items(method: Method, request: Message, call: Call) -> AsyncGenerator[Any, None]:
    return cast("AsyncGenerator[Any, None]", method.handler(request, call))


class _Work:
    """Where a call is on its road."""

    __slots__ = (
        "_given", "admitted", "call", "committed", "committing", "counted", "handling", "held", "leave",
        "plan", "replayed", "request", "unit",
    )  # fmt: skip

    def __init__(self, plan: Plan, call: Call, given: Given) -> None:
        self.plan, self.call, self._given = plan, call, given
        self.request: Message | None = None
        self.unit: WorkUnit | None = None
        self.leave: Callable[[], None] | None = None
        self.counted = self.held = False
        self.admitted = self.handling = self.replayed = self.committing = self.committed = False

    async def read(self) -> Message:
        """The request, read now."""
        read = self._given if isinstance(self._given, Message) else self._given()
        request = read if isinstance(read, Message) else await read
        self.request = request
        return request


def _being_cancelled() -> bool:
    """Whether it is this call that is cancelled, and not a task inside its handler (grpc/grpc#29248)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
