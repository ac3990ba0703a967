"""What a stream of the hub asks, under which grant; and that it ends with the grant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from google.protobuf.message import DecodeError

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.faults import Fault, Invalid
from libs.kube import Principal
from libs.log import trace
from libs.rpc.call import Call, Caller, Kind
from libs.rpc.peers import HUB, TUNNEL
from libs.rpc.pipeline import Pipeline
from libs.tunnel import Mux, Reset, Stream, calls
from libs.tunnel.kubernetes import Request, Target
from services.agent.grants import CALL, GrantBook, GrantRefused, Held
from services.agent.policy import LocalPolicy
from services.agent.proxy import Proxy

_USER, _UID, _GROUPS = "kubegems-user", "kubegems-uid", "kubegems-groups"
_PEER = f"{HUB}gateway"
_log = log.get("services.agent.link")


@dataclass(slots=True)
class _Expiry:
    """When a stream ends, unless its grant is renewed; and what it asks of Kubernetes."""

    need: str
    held: Held
    timer: asyncio.TimerHandle
    target: Target | None = None


class Desk:
    """Serves the streams of one tunnel.

    Args:
        mux: the tunnel.
        book: its grants.
        pipeline: answers typed calls.
        proxy: answers Kubernetes requests.
        address: the hub's, for logs.
        policy: what the cluster's owner denies; None for nothing.
        on_go_away: called when the hub's end is about to stop.
    """

    def __init__(
        self, mux: Mux, book: GrantBook, *, pipeline: Pipeline, proxy: Proxy, address: str, policy: LocalPolicy | None = None,
        on_go_away: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._mux, self._book, self._pipeline, self._proxy, self._address = mux, book, pipeline, proxy, address
        self._policy = policy
        self._on_go_away = on_go_away
        self._open: dict[int, _Expiry] = {}
        if policy is not None:
            policy.listeners.add(self._policy_changed)

    def close(self) -> None:
        """The tunnel is gone."""
        if self._policy is not None:
            self._policy.listeners.discard(self._policy_changed)

    async def serve(self, stream: Stream, header: bytes) -> None:
        """Serves one stream of the hub."""
        try:
            await self._read(stream, tunnel_pb2.StreamHeader.FromString(header))
        except DecodeError:
            stream.reset(Reset.BROKEN, "the header cannot be read")
        except Fault as fault:
            _log.warning("link.refused", code=fault.code.name, reason=fault.reason, why=fault.message)
            await calls.fail(stream, fault)
        finally:
            if (expiry := self._open.pop(stream.id, None)) is not None:
                expiry.timer.cancel()

    async def _read(self, stream: Stream, opened: tunnel_pb2.StreamHeader) -> None:
        purpose = opened.WhichOneof("purpose")
        if purpose == "call":
            await self._call(stream, opened)
        elif purpose == "kubernetes":
            await self._kubernetes(stream, opened)
        elif purpose == "regrant":
            self._regrant(opened.regrant)
            stream.end()
        elif purpose == "go_away":
            _log.info("link.asked_to_go", why=opened.go_away.reason)
            self._on_go_away()
            stream.end()
        else:
            stream.reset(Reset.REFUSED, "unknown purpose")

    async def _call(self, stream: Stream, opened: tunnel_pb2.StreamHeader) -> None:
        who = self._granted(stream, opened.call.grant, CALL + opened.call.method).principal
        metadata = {_USER: who.user, _UID: who.uid, _GROUPS: _written(who.groups)}
        await calls.serve(
            stream, opened.call, self._pipeline, peer=_PEER, traceparent=opened.traceparent, address=self._address, metadata=metadata
        )

    async def _kubernetes(self, stream: Stream, opened: tunnel_pb2.StreamHeader) -> None:
        asked = opened.kubernetes
        request = Request(asked.method, asked.path, asked.query, tuple((h.name, h.value) for h in asked.headers), asked.upgrade)
        target = request.target()
        if target.path != asked.path:
            raise Invalid.one("path", "is not canonical")
        who = self._granted(stream, asked.grant, target.verb).principal
        if self._policy is not None:
            self._policy.check(who, target)
            self._open[stream.id].target = target
        attributes = {"http.request.method": asked.method, "kubegems.verb": target.action, "enduser.id": who.user}
        with trace.span("kubernetes.serve", parent=opened.traceparent or None, kind=trace.SpanKind.SERVER, attributes=attributes):
            await self._proxy.serve(stream, request, has_body=asked.has_body, principal=who)

    def _granted(self, stream: Stream, use: tunnel_pb2.GrantUse, need: str) -> Held:
        held = self._book.check(use, need)
        self._until(stream.id, need, held)
        return held

    def _until(self, number: int, need: str, held: Held) -> None:
        timer = self._mux.loop.call_later(self._book.seconds_left(held), self._expire, number)
        self._open[number] = _Expiry(need, held, timer)

    def _expire(self, number: int, why: str = "the grant is over") -> None:
        stream = self._mux.stream(number)
        if stream is not None:
            stream.reset(Reset.EXPIRED, why)
            if stream.task is not None:
                stream.task.cancel()

    def _policy_changed(self) -> None:
        """Ends the streams of what the owner denies from now on."""
        for number, open_ in list(self._open.items()):
            try:
                if self._policy is not None and open_.target is not None:
                    self._policy.check(open_.held.principal, open_.target)
            except Fault as fault:
                _log.warning("link.denied_now", reason=fault.reason, why=fault.message)
                self._expire(number, "the cluster's owner denies it now")

    def _regrant(self, regrant: tunnel_pb2.Regrant) -> None:
        current = self._open.get(regrant.stream)
        if current is None:
            return  # it ended meanwhile
        held = self._book.check(regrant.grant, current.need)
        if (held.principal.user, held.principal.uid) != (current.held.principal.user, current.held.principal.uid):
            raise GrantRefused("the grant is another user's")
        current.timer.cancel()
        self._until(regrant.stream, current.need, held)
        self._open[regrant.stream].target = current.target


async def by_grant(call: Call) -> Caller:
    """The caller of a typed call: the grant's user. Give it to the agent's pipeline as `peers`."""
    principal = principal_of(call)
    kind, _, name = principal.user.removeprefix("gems:").partition(":")
    return Caller(Kind.USER if kind == "user" else Kind.SERVICE, name, principal.uid)


def principal_of(call: Call) -> Principal:
    """As whom a servicer must act; GrantRefused for a call that came under no grant."""
    user = call.metadata.get(_USER, "")
    if not user or call.transport != TUNNEL:
        raise GrantRefused("the call came under no grant")
    return _principal(user, call.metadata.get(_UID, ""), call.metadata.get(_GROUPS, "[]"))


@lru_cache(maxsize=1024)  # a caller's calls come in rows, with up to 500 groups each
def _written(groups: tuple[str, ...]) -> str:
    return json.dumps(groups)


@lru_cache(maxsize=1024)
def _principal(user: str, uid: str, groups: str) -> Principal:
    return Principal(user, uid, tuple(json.loads(groups)))
