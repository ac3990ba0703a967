"""One agent's tunnel, once it is known whose it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from kubegems.agent.v1 import tunnel_pb2
from libs import clock
from libs.tunnel import Mux, calls
from services.gateway.link.grants import Grants, Principal
from services.gateway.link.road import Road, Verbs


@dataclass(eq=False, slots=True)
class Tunnel(Road):
    """A tunnel that stands.

    Attributes:
        uid: the cluster's.
        version: the agent's.
        session: id that grants are bound to.
        address: where it comes from.
        mux: its streams.
        grants: signs for it.
        since: monotonic seconds when it stood.
        serial: serial number of the agent's certificate, hex.
        protocol: version of the protocol that both ends speak.
        number: rises with each tunnel of the hub.
    """

    uid: str
    version: str
    session: str
    address: str
    mux: Mux
    grants: Grants
    since: float = field(default_factory=lambda: clock.SystemClock().monotonic())
    serial: str = ""
    protocol: int = 1
    number: int = 0

    async def call(self, method: MethodDescriptor, request: Message, principal: Principal, *, timeout: float) -> Any:
        """Calls one of the agent's services as a principal; raises Fault."""
        grant = self.grants.use(principal, (f"call:/{method.containing_service.full_name}/{method.name}",))
        return await calls.unary(self.mux, method, request, timeout=timeout, grant=grant)

    def sign(self, header: tunnel_pb2.StreamHeader, principal: Principal, verbs: Verbs, *, quarters: int = 2) -> tunnel_pb2.StreamHeader:
        """Puts a grant into a header."""
        purpose = header.WhichOneof("purpose")
        getattr(header, str(purpose)).grant.CopyFrom(self.grants.use(principal, verbs, quarters=quarters))
        return header
