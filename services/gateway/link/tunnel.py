"""One agent's tunnel, once it is known whose it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from kubegems.agent.v1 import tunnel_pb2
from libs import clock
from libs.faults import PermissionDenied
from libs.log import trace
from libs.tunnel import Mux, StreamEnded, calls
from libs.tunnel.kubernetes import Request
from services.gateway.link.exchange import Body, Exchange, Renew
from services.gateway.link.grants import Grants, Principal, verbs_for

HEAD_SECONDS = 65.0  # an API server's own limit is 60 s
_REGRANT_SECONDS = 10.0


@dataclass(eq=False, slots=True)
class Tunnel:
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

    async def call(self, method: MethodDescriptor, request: Message, principal: Principal, *, timeout: float) -> Any:
        """Calls one of the agent's services as a principal; raises Fault."""
        grant = self.grants.use(principal, (f"call:/{method.containing_service.full_name}/{method.name}",))
        return await calls.unary(self.mux, method, request, timeout=timeout, grant=grant)

    async def kubernetes(
        self, request: Request, body: Body, principal: Principal, *, renew: Renew | None, head_seconds: float | None
    ) -> Exchange:
        """Sends a Kubernetes request and waits for the head of its answer; raises Fault."""
        target = request.target()
        verbs = verbs_for(target)
        attributes = {"http.request.method": request.method, "kubegems.verb": target.action, "kubegems.cluster_uid": self.uid}
        with trace.span("kubernetes.request", kind=trace.SpanKind.CLIENT, attributes=attributes):
            header = tunnel_pb2.KubernetesHeader(
                method=request.method, path=target.path, query=request.query, upgrade=request.upgrade,
                headers=[tunnel_pb2.KubernetesHeader.Header(name=n, value=v) for n, v in request.headers],
                grant=self.grants.use(principal, verbs), has_body=body is not None,
            )  # fmt: skip
            opening = tunnel_pb2.StreamHeader(kubernetes=header, traceparent=trace.traceparent()).SerializeToString()
            try:
                stream = self.mux.open(opening, end=body is None and not request.upgrade)
            except StreamEnded as error:
                raise calls.fault_of(error, "the request") from error
            exchange = Exchange(stream, upgrade=bool(request.upgrade))
            exchange.keep_granted(principal, renew, lambda who: self._regrant(stream.id, who, verbs))
            try:
                await exchange.begin(body, head_seconds)
            except BaseException:
                await exchange.aclose()
                raise
            return exchange

    async def _regrant(self, number: int, principal: Principal, verbs: tuple[str, ...]) -> None:
        regrant = tunnel_pb2.Regrant(stream=number, grant=self.grants.use(principal, verbs, quarters=3))
        stream = self.mux.open(tunnel_pb2.StreamHeader(regrant=regrant).SerializeToString(), end=True)
        stream.expire_after(_REGRANT_SECONDS)
        await stream.receive()
        if (fault := calls.failure(stream.trailer)) is not None:
            raise PermissionDenied("the agent refused the new grant") from fault
