"""One attempt at a job: rights, payload, handler or steps, and what its end means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

from google.protobuf.message import Message

from libs import log
from libs.faults import Code, Fault, Invalid
from libs.jobs import claims, steps
from libs.jobs.claims import Outcome
from libs.jobs.context import Context
from libs.jobs.domain import GiveUp, Job, LeaseLost, Reason, Retry, State, to_json
from libs.jobs.kind import Kind
from libs.pg import Database

_TRY_AGAIN = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.INTERNAL}
_SOON = timedelta(seconds=2)
_log = log.get("libs.jobs")

Allowed = Callable[[str, str, str], Awaitable[bool]]


class Done(Exception):
    """The outcome is committed already, together with the job's effects."""


class Attempt:
    """Runs one claimed job to an outcome.

    Args:
        allowed: (owner's user name, permission, target) → whether the owner still may.
    """

    def __init__(self, context: Context, kind: Kind, database: Database, allowed: Allowed) -> None:
        self._context = context
        self._job = context.job
        self._kind = kind
        self._database = database
        self._allowed = allowed

    async def run(self) -> Outcome:
        """The outcome; raises Done when it is written already, LeaseLost, and CancelledError when the task is cancelled."""
        try:
            payload = self._kind.parse(self._job.arguments)
            if not await self._may():
                return self._failed(f"{self._owner} may no longer {self._kind.permission} on {self._job.target}", Reason.FORBIDDEN)
        except Invalid as fault:
            return self._failed(str(fault), Reason.BAD_PAYLOAD)
        except Fault as fault:  # who could tell is away: that is no attempt
            return self.outcome(State.QUEUED, error=f"rights are not known: {fault}", after=_SOON, counted=False)
        except Exception as error:  # noqa: BLE001 -- as below: an outcome, not a lost job
            return self._crashed(error)
        return await self._tried(payload)

    async def _tried(self, payload: Message) -> Outcome:  # noqa: PLR0911 -- one line per way an attempt can end
        try:
            return self.outcome(State.SUCCEEDED, result=await self._work(payload))
        except (LeaseLost, Done):
            raise
        except GiveUp as error:
            return self._failed(str(error), Reason.NOT_RETRYABLE)
        except Retry as error:
            return self.retry(str(error), error.after)
        except TimeoutError:
            return self.retry("a deadline passed", None)
        except Fault as fault:
            if fault.code in _TRY_AGAIN:
                return self.retry(str(fault), fault.retry_after)
            return self._failed(str(fault), Reason.NOT_RETRYABLE)
        except Exception as error:  # noqa: BLE001 -- a handler's mistake must end as an outcome, not as a lost job
            return self._crashed(error)

    def _crashed(self, error: Exception) -> Outcome:
        _log.error("job.crashed", job=self._job.name, kind=self._job.kind, exc_info=error)
        return self.retry("internal error", None)

    async def _work(self, payload: Message) -> Mapping[str, Any] | None:
        if self._kind.steps:
            return await self._in_steps(payload)
        assert self._kind.handler is not None
        result = _json(await self._kind.handler(self._context, payload))
        if self._context.has_effects:
            await self._with_effects(result)
        return result

    async def _with_effects(self, result: Mapping[str, Any] | None) -> None:
        """Effects and outcome are one transaction: both are there, or neither."""
        async with self._database.transaction() as tx:
            if not await claims.holds(tx, self._job):
                raise LeaseLost
            await self._context.settle(tx)
            await claims.finish(tx, [self.outcome(State.SUCCEEDED, result=result)])
        raise Done

    async def _in_steps(self, payload: Message) -> Mapping[str, Any] | None:
        async with self._database.transaction() as tx:
            known = {row.name: row for row in await steps.prepare(tx, self._job, [step.name for step in self._kind.steps])}
        result = None
        for step in self._kind.steps:
            row = known[step.name]
            result = row.result if row.state == State.SUCCEEDED else await self._step(step.name, step.handler, payload)
            self._context.results[step.name] = result
        return result

    async def _step(self, name: str, handler: Any, payload: Message) -> Mapping[str, Any] | None:
        self._context.enter(name)
        async with self._database.transaction() as tx:
            await steps.begin(tx, self._job, name)
        try:
            result = _json(await handler(self._context, payload))
            async with self._database.transaction() as tx:
                await steps.end(tx, self._job, name, result=result)
                await self._context.settle(tx)
        except LeaseLost:
            raise
        except Exception as error:
            told = str(error) if isinstance(error, Fault | Retry | GiveUp) else "internal error"
            async with self._database.transaction() as tx:
                await steps.end(tx, self._job, name, error=told)
            raise
        return result

    async def _may(self) -> bool:
        if not self._kind.permission or not self._owner:
            return True
        return await self._allowed(self._owner.removeprefix("users/"), self._kind.permission, self._job.target)

    @property
    def _owner(self) -> str:
        return self._job.owner

    def _failed(self, error: str, reason: Reason) -> Outcome:
        return self.outcome(State.FAILED, error=error, reason=reason)

    def retry(self, error: str, after: timedelta | None, reason: Reason = Reason.EXHAUSTED) -> Outcome:
        """Again after a while, or DEAD when that was the last try."""
        if self._job.attempts >= self._job.max_attempts:
            return self.outcome(State.DEAD, error=error, reason=reason)
        return self.outcome(State.QUEUED, error=error, after=after or self._kind.retry_after(self._job.attempts))

    def outcome(self, state: State, **more: Any) -> Outcome:
        """An outcome of this attempt."""
        return Outcome(report=self._context.report, state=state, keep=self._kind.keep, keep_result=self._kind.keep_result, **more)


def _json(result: Message | None) -> Mapping[str, Any] | None:
    return None if result is None else to_json(result)


def given_back(context: Context, job: Job) -> Outcome:
    """The process stops: another one goes on at once, and the attempt does not count."""
    return Outcome(report=context.report, state=State.QUEUED, error=f"{job.name} moves to another worker", counted=False)
