"""`/k8s/clusters/<name>/…`: the Kubernetes API of a member cluster, as the caller and under the cluster's own RBAC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

from aiohttp import web
from multidict import CIMultiDict

from libs import log
from libs.faults import Code, Exhausted, Fault, Internal, NotFound, Unauthenticated, Unavailable
from libs.log import trace
from libs.rpc.call import Caller
from libs.tunnel.kubernetes import Header, Request, Target, impersonated_user
from services.gateway.link import kubernetes_status as status
from services.gateway.link.exchange import SWITCHING, Exchange, covers
from services.gateway.link.grants import Principal
from services.gateway.link.hijack import SLOW_SECONDS, Hijacked, Taken, join
from services.gateway.link.kubernetes_record import Journal, Record
from services.gateway.link.kubernetes_request import PREFIX, Split, body_of, read, token_of
from services.gateway.link.links import Links
from services.gateway.link.road import HEAD_SECONDS

MOST_PER_USER = 200  # requests of one user at a time
_LOOK_SECONDS = 0.5
_GONE_SECONDS = 1.0
_ANSWER_SECONDS = 1.0  # that looking a caller up may take
_UNKNOWN_SECONDS = 4.5  # that what runs may run on after it was last read that it may; five are promised
_CLOSED_SECONDS = 0.2  # by then the listener is closed, so that clients come back elsewhere
_REDIRECTS = range(300, 400)
_log = log.get("services.gateway.link.kubernetes")


class ClusterMissing(NotFound):
    """There is no such cluster, or the caller may not know of it."""

    reason = "CLUSTER_NOT_FOUND"


class Access(Protocol):
    """What the edge asks of identity and fleet."""

    async def cluster_uid(self, name: str) -> str | None:
        """The uid of a cluster, whoever asks; None when there is none."""
        ...

    async def authenticate(self, token: str, cluster_uid: str) -> Caller:
        """The user of an access token, or of a kubeconfig token of this cluster; raises Unauthenticated."""
        ...

    async def still(self, caller: Caller) -> Caller:
        """The same caller as it stands now; raises Unauthenticated when its session or user has ended."""
        ...

    def read_at(self) -> float:
        """When (monotonic) that was read which answers come from."""
        ...

    def visible(self, caller: Caller, name: str) -> bool:
        """Whether the caller may know of the cluster."""
        ...

    async def principal(self, caller: Caller, cluster_uid: str) -> Principal:
        """As whom the caller acts there."""
        ...

    async def impersonate(self, caller: Caller, cluster: str, cluster_uid: str, username: str) -> Principal:
        """Another user with that user's own groups; PermissionDenied unless the caller may act as others, NotFound."""
        ...

    def permit(self, caller: Caller, target: Target, environment: str, address: str) -> None:
        """Raises PermissionDenied when what the caller signed in with, such as an API key, does not give this."""
        ...

    async def environment(self, cluster_uid: str, namespace: str) -> str:
        """Name of the environment that a namespace belongs to, for audit; empty for none."""
        ...


@dataclass(eq=False, slots=True)
class _Open:
    """A request on its way."""

    caller: Caller
    cluster: str
    uid: str
    principal: Principal
    known: float  # when it was read last that the caller may
    exchange: Exchange | None = None
    named: str = ""  # another user as whom the caller acts
    watch: bool = False


class KubernetesEdge:
    """The handler of `/k8s`.

    Args:
        links: the road to clusters.
        access: who may, and as whom.
        journal: the audit log.
        origins: further values of `Origin` that may upgrade; the hub's own always may.
        limit: rate limit by client address, raising Exhausted; before any token is looked at.
    """

    def __init__(
        self, links: Links, access: Access, journal: Journal, *, origins: frozenset[str] = frozenset(),
        limit: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self._links = links
        self._access = access
        self._journal = journal
        self._origins = origins
        self._limit = limit
        self._open: set[_Open] = set()
        self._per_user: dict[str, int] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application; its runner should have `handler_cancellation` on."""
        return [web.route("*", PREFIX + "{name}/{tail:.*}", self.handle)]

    async def run(self) -> None:
        """Ends requests whose caller lost access within a second, and those of which nobody can tell within five; until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(_LOOK_SECONDS, self.recheck), name="access rechecked")
            group.create_task(self._every(_LOOK_SECONDS / 2, self._unknown), name="access unknown")

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await work()

    async def recheck(self) -> None:
        """Asks for every open request whether its caller still may."""
        asked: dict[tuple[str, str, str], tuple[Principal | Fault, float]] = {}
        away: Fault | None = None
        for open_ in list(self._open):
            key = (open_.caller.session, open_.uid, open_.named)
            if key not in asked:
                asked[key] = (away, 0.0) if away else await self._answered(open_)
            answer, read_at = asked[key]
            if isinstance(answer, Fault) and answer.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                away = answer
                continue
            open_.known = read_at
            if open_.exchange is not None and (isinstance(answer, Fault) or not covers(answer, open_.principal)):
                open_.exchange.stop("access ended")

    async def _unknown(self) -> None:
        oldest = time.monotonic() - _UNKNOWN_SECONDS
        for open_ in list(self._open):
            if open_.exchange is not None and open_.known < oldest:
                open_.exchange.stop("access cannot be checked")

    async def _answered(self, open_: _Open) -> tuple[Principal | Fault, float]:
        """As whom the caller acts, or why it may not, and when that was read."""
        read_at = self._access.read_at()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._renewed(open_), read_at
        except TimeoutError:
            return Unavailable("whoever knows does not answer"), read_at
        except Fault as fault:
            return fault, read_at

    async def _renewed(self, open_: _Open) -> Principal:
        caller = await self._access.still(open_.caller)
        if (caller.uid, caller.session) != (open_.caller.uid, open_.caller.session):
            raise Unauthenticated("the session is another's")
        if not self._access.visible(caller, open_.cluster):
            raise _missing(open_.cluster)
        if open_.named:
            return await self._access.impersonate(caller, open_.cluster, open_.uid, open_.named)
        return await self._access.principal(caller, open_.uid)

    async def drain(self, seconds: float) -> None:
        """The gateway stops: watches end now, since they may end at any time and go on elsewhere; the rest has some seconds."""
        await asyncio.sleep(_CLOSED_SECONDS)
        self._stop(lambda open_: open_.watch)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self._open and loop.time() < until:  # noqa: ASYNC110 -- requests end in many places
            await asyncio.sleep(_LOOK_SECONDS / 10)
        self._stop(lambda _: True)

    def _stop(self, which: Callable[[_Open], bool]) -> None:
        for open_ in list(self._open):
            if open_.exchange is not None and which(open_):
                open_.exchange.gateway_stops()

    # -- one request

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request."""
        split = Split(request.raw_path)
        record = Record(
            self._journal, address=request.remote or "", user_agent=request.headers.get("User-Agent", ""), cluster=split.cluster
        )
        with trace.span("kubernetes", link=request.headers.get("traceparent"), kind=trace.SpanKind.SERVER) as span:
            try:
                return await self._answer(request, split, record, span)
            except Fault as fault:
                span.set_attribute("http.response.status_code", status.http_status(fault))
                return status.answer(fault, record.request_id)
            except ConnectionError:
                return Taken()  # the client went away
            except Exception as error:  # noqa: BLE001 -- the last line before the wire: whatever it is, the client gets a Status
                _log.error("kubernetes.crashed", request_id=record.request_id, exc_info=error)
                internal = Internal(f"internal error; tell the operator this id: {record.request_id}")
                return status.answer(internal, record.request_id)

    async def _answer(self, request: web.Request, split: Split, record: Record, span: trace.Span) -> web.StreamResponse:
        if self._limit is not None:
            self._limit(request.remote or "")
        open_ = await self._admitted(request, split)
        asked, body = await self._read(request, split, open_, record)
        target = asked.target()
        open_.watch = target.verb == "watch"
        environment = await self._access.environment(open_.uid, target.namespace) if target.namespace else ""
        record.about(open_.caller, target, request.method, environment, named=open_.named)
        try:
            self._access.permit(open_.caller, target, environment, request.remote or "")
        except Fault as fault:
            await record.failed(fault)
            raise
        span.set_attributes({"kubegems.cluster": open_.cluster, "kubegems.verb": target.action, "k8s.resource": target.resource})
        with self._counted(open_):
            await record.begin()
            code, reason = "CANCELLED", "CLIENT_GONE"
            try:
                exchange = await self._links.kubernetes(
                    open_.uid, asked, body, open_.principal, renew=lambda: self._renewed(open_), cluster=open_.cluster,
                    head_seconds=None if target.endless else HEAD_SECONDS,
                )  # fmt: skip
                async with exchange:
                    open_.exchange = exchange
                    code, reason = status.code_of(exchange.status), ""
                    return await self._passed(request, exchange, asked.upgrade, open_)
            except Fault as fault:
                code, reason = fault.code.name, fault.reason
                raise
            except ConnectionError:
                code, reason = "CANCELLED", "CLIENT_GONE"
                raise
            finally:
                if open_.exchange is not None:
                    code, reason = open_.exchange.outcome or (code, reason)
                await self._to_its_end(record.done(code, reason))

    async def _read(self, request: web.Request, split: Split, open_: _Open, record: Record) -> tuple[Request, AsyncIterator[bytes] | None]:
        """The request that travels and its body, and as whom else the caller acts; a refusal is recorded."""
        try:
            if named := impersonated_user(request.raw_headers):
                open_.principal = await self._access.impersonate(open_.caller, split.cluster, open_.uid, named)
                open_.named = named
            asked = read(request, split, self._origins, user_named=bool(named))
            return asked, body_of(request, asked.target(), asked.upgrade)
        except Fault as fault:
            record.about(open_.caller, Target(split.path[:256], "unknown"), request.method, "", named=open_.named)
            await record.failed(fault)
            raise

    async def _to_its_end(self, work: Coroutine[None, None, None]) -> None:
        """What must be written down is, even when the client goes meanwhile."""
        task = asyncio.create_task(work, name="kubernetes audit outcome")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    async def _admitted(self, request: web.Request, split: Split) -> _Open:
        """Who asks for which cluster; a cluster that is not there and one that may not be seen look alike."""
        read_at = self._access.read_at()
        uid = await self._access.cluster_uid(split.cluster) if split.cluster else None
        caller = await self._access.authenticate(token_of(request), uid or "")
        if uid is None or not self._access.visible(caller, split.cluster):
            raise _missing(split.cluster)
        return _Open(caller, split.cluster, uid, await self._access.principal(caller, uid), read_at)

    @contextlib.contextmanager
    def _counted(self, open_: _Open) -> Iterator[None]:
        user = open_.caller.uid
        if self._per_user.get(user, 0) >= MOST_PER_USER:
            raise Exhausted(f"{open_.caller.name} has {MOST_PER_USER} requests open", retry_after=timedelta(seconds=1))
        self._per_user[user] = self._per_user.get(user, 0) + 1
        self._open.add(open_)
        try:
            yield
        finally:
            self._open.discard(open_)
            self._per_user[user] -= 1
            if not self._per_user[user]:
                del self._per_user[user]

    async def _passed(self, request: web.Request, exchange: Exchange, upgrade: str, open_: _Open) -> web.StreamResponse:
        if exchange.status == SWITCHING:
            await join(Hijacked.take(request, upgrade, exchange.headers), exchange)
            return Taken()
        if exchange.status == web.HTTPUnauthorized.status_code:
            raise Unavailable(f"cluster {open_.cluster} refused its own agent's credentials; its operator must renew them")
        headers = CIMultiDict((name, value.decode("latin-1")) for name, value in _located(exchange, open_.cluster))
        response = web.StreamResponse(status=exchange.status, headers=headers)
        await response.prepare(request)
        with _while_there(request, exchange):
            try:
                with _whole_watch(exchange, open_):
                    async for chunk in exchange:
                        async with asyncio.timeout(SLOW_SECONDS):
                            await response.write(chunk)
                async with asyncio.timeout(SLOW_SECONDS):
                    await response.write_eof()
            except (Fault, TimeoutError) as error:
                _cut(request)  # the head is out: only a cut connection can say that the body is not whole
                if not exchange.ended:
                    _log.info("kubernetes.broken_off", cause=type(error).__name__, cluster=open_.cluster)
        return response


@contextlib.contextmanager
def _whole_watch(exchange: Exchange, open_: _Open) -> Iterator[None]:
    """A watch may end at any time: when this gateway is being restarted the client asks again, and elsewhere."""
    try:
        yield
    except Fault:
        if not (exchange.stopped and open_.watch):
            raise


@contextlib.contextmanager
def _while_there(request: web.Request, exchange: Exchange) -> Iterator[None]:
    """Breaks a quiet exchange off when the client has gone, which nothing else would notice."""
    loop = asyncio.get_running_loop()

    timers: list[asyncio.TimerHandle] = []

    def look() -> None:
        if request.transport is None or request.transport.is_closing():
            exchange.let_go()
        else:
            timers[:] = [loop.call_later(_GONE_SECONDS, look)]

    look()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _located(exchange: Exchange, cluster: str) -> list[Header]:
    """The answer's headers; a redirect stays within the cluster's own API, or is an error."""
    if exchange.status not in _REDIRECTS:
        return list(exchange.headers)
    headers: list[Header] = []
    for name, value in exchange.headers:
        if name != "location":
            headers.append((name, value))
        elif value.startswith(b"/") and not value.startswith((b"//", b"/\\")):
            headers.append((name, f"{PREFIX}{cluster}".encode() + value))
        else:
            raise Unavailable("the cluster's API server answered with a redirect to another host, which is not followed")
    return headers


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        cast("asyncio.WriteTransport", request.transport).abort()  # by its name: uvloop's are no subclass


def _missing(name: str) -> ClusterMissing:
    return ClusterMissing(f"clusters/{name} does not exist" if name else "no such cluster")
