"""A road to one cluster: its own tunnel, or the gateway that holds it. Calls and requests go out the same way on both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from kubegems.agent.v1 import tunnel_pb2
from libs.faults import PermissionDenied
from libs.log import trace
from libs.tunnel import Mux, StreamEnded, calls
from libs.tunnel.kubernetes import Request
from services.gateway.link.exchange import Body, Exchange, Renew
from services.gateway.link.grants import Principal, verbs_for

HEAD_SECONDS = 65.0  # an API server's own limit is 60 s
_REGRANT_SECONDS = 10.0
Verbs = tuple[str, ...]


class Road(ABC):
    """What `Links` finds for a cluster.

    Attributes:
        uid: the cluster's.
        mux: where streams are opened.
    """

    uid: str
    mux: Mux

    @abstractmethod
    async def call(self, method: MethodDescriptor, request: Message, principal: Principal, *, timeout: float) -> Any:
        """Calls one of the agent's services as a principal; raises Fault."""

    @abstractmethod
    def sign(self, header: tunnel_pb2.StreamHeader, principal: Principal, verbs: Verbs, *, quarters: int = 2) -> tunnel_pb2.StreamHeader:
        """Puts into a header as whom its stream acts; the stream must be opened next."""

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
                has_body=body is not None,
            )  # fmt: skip
            opening = self.sign(tunnel_pb2.StreamHeader(kubernetes=header, traceparent=trace.traceparent()), principal, verbs)
            try:
                stream = self.mux.open(opening.SerializeToString(), end=body is None and not request.upgrade)
            except StreamEnded as error:
                raise calls.fault_of(error, "the request") from error
            exchange = Exchange(stream, upgrade=bool(request.upgrade), method=request.method)
            exchange.keep_granted(principal, renew, lambda who: self.regrant(stream.id, who, verbs))
            try:
                await exchange.begin(body, head_seconds)
            except BaseException:
                await exchange.aclose()
                raise
            return exchange

    async def regrant(self, number: int, principal: Principal, verbs: Verbs) -> None:
        """Renews the grant of a stream that is open; raises PermissionDenied, StreamEnded."""
        header = tunnel_pb2.StreamHeader(regrant=tunnel_pb2.Regrant(stream=number))
        stream = self.mux.open(self.sign(header, principal, verbs, quarters=3).SerializeToString(), end=True)
        stream.expire_after(_REGRANT_SECONDS)
        await stream.receive()
        if (fault := calls.failure(stream.trailer)) is not None:
            raise PermissionDenied("the agent refused the new grant") from fault
