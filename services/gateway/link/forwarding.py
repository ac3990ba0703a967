"""Between gateways: what one asks of the one that holds a cluster's tunnel, and how that one serves it.

Who asks has decided what the caller may and names as whom; who holds the tunnel signs the grant for it, since the agent
knows that gateway's key. Both prove by certificate that they are gateways of the hub. What was forwarded is served from
a tunnel held here or refused: it is never passed on, so nothing can go round in circles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from kubegems.agent.v1 import tunnel_pb2
from libs.faults import Fault
from libs.tunnel import Mux, Reset, Stream, StreamEnded, calls
from libs.tunnel.kubernetes import Request
from libs.tunnel.splice import splice
from services.gateway.link.grants import Principal, ServicePrincipal, checked, verbs_for
from services.gateway.link.road import Road, Verbs
from services.gateway.link.tunnel import Tunnel


class Forwarded(Road):
    """The road through another gateway."""

    def __init__(self, uid: str, mux: Mux) -> None:
        self.uid = uid
        self.mux = mux

    async def call(self, method: MethodDescriptor, request: Message, principal: Principal, *, timeout: float) -> Any:
        """Calls one of the agent's services as a principal; raises Fault."""
        return await calls.unary(self.mux, method, request, timeout=timeout, forward=self._as(principal))

    def sign(self, header: tunnel_pb2.StreamHeader, principal: Principal, verbs: Verbs, *, quarters: int = 2) -> tunnel_pb2.StreamHeader:
        """Names the cluster and the principal; the holder grants."""
        del verbs, quarters
        header.forward.CopyFrom(self._as(principal))
        return header

    def _as(self, principal: Principal) -> tunnel_pb2.Forward:
        checked(principal)
        return tunnel_pb2.Forward(cluster_uid=self.uid, user=principal.user, uid=principal.uid, groups=principal.groups)


class Held(Protocol):
    """The tunnels of this gateway."""

    def tunnel(self, uid: str) -> Tunnel:
        """A cluster's tunnel held here; raises ClusterOffline."""
        ...


@dataclass(frozen=True, slots=True)
class _Passing:
    """A stream on its way."""

    tunnel: Tunnel
    far: Stream
    verbs: Verbs


class ForwardDesk:
    """Serves what one other gateway forwards over one connection."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._passing: dict[int, _Passing] = {}

    async def serve(self, near: Stream, header: bytes) -> None:
        """Serves one stream of the other gateway."""
        try:
            await self._read(near, tunnel_pb2.StreamHeader.FromString(header))
        except DecodeError:
            near.reset(Reset.BROKEN, "the header cannot be read")
        except Fault as fault:
            await calls.fail(near, fault)

    async def _read(self, near: Stream, opening: tunnel_pb2.StreamHeader) -> None:
        purpose = opening.WhichOneof("purpose")
        if not opening.HasField("forward") or purpose not in ("call", "kubernetes", "regrant"):
            near.reset(Reset.REFUSED, "only what is for a cluster is served here")
            return
        who = opening.forward
        principal = ServicePrincipal(who.user, who.uid, tuple(who.groups))
        opening.ClearField("forward")
        if purpose == "regrant":
            await self._regrant(near, opening.regrant.stream, principal)
        else:
            await self._pass(near, self._held.tunnel(who.cluster_uid), opening, principal)

    async def _pass(self, near: Stream, tunnel: Tunnel, opening: tunnel_pb2.StreamHeader, principal: Principal) -> None:
        verbs = _verbs(opening)
        try:
            far = tunnel.mux.open(tunnel.sign(opening, principal, verbs).SerializeToString())
        except StreamEnded as error:
            raise calls.fault_of(error, "the request") from error
        self._passing[near.id] = _Passing(tunnel, far, verbs)
        try:
            await splice(near, far)
        finally:
            del self._passing[near.id]

    async def _regrant(self, near: Stream, number: int, principal: Principal) -> None:
        passing = self._passing.get(number)
        if passing is not None:  # else it ended meanwhile
            try:
                await passing.tunnel.regrant(passing.far.id, principal, passing.verbs)
            except StreamEnded as error:
                raise calls.fault_of(error, "the new grant") from error
        near.end()


def _verbs(opening: tunnel_pb2.StreamHeader) -> Verbs:
    if opening.WhichOneof("purpose") == "call":
        return (f"call:{opening.call.method}",)
    asked = opening.kubernetes
    return verbs_for(Request(asked.method, asked.path, asked.query, (), asked.upgrade).target())
