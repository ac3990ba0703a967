"""Connections that agents and other gateways make: greeted, kept until they end, and what comes over them served."""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiohttp import web
from cryptography import x509
from google.protobuf.message import DecodeError

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.rpc.peers import CLUSTER
from libs.rpc.pipeline import Pipeline
from libs.tunnel import Limits, Mux, Reset, Stream, calls
from libs.tunnel.mux import Accept
from libs.tunnel.tcp import Connection
from libs.tunnel.websocket import SocketConnection
from services.gateway.fleet import PROTOCOL_KEY
from services.gateway.link.broker_stream import BrokerStreams
from services.gateway.link.door import AnyConnection, Door, Refused, cluster_of, is_gateway
from services.gateway.link.forwarding import ForwardDesk, Held
from services.gateway.link.metrics import LinkMetrics
from services.gateway.link.tunnel import Tunnel

_log = log.get("services.gateway.link")


class Registry(Held, Protocol):
    """The tunnels of this gateway."""

    def take(self, tunnel: Tunnel) -> None:
        """A tunnel stands; raises Refused."""
        ...

    def drop(self, tunnel: Tunnel) -> None:
        """It is gone."""
        ...

    def of(self, uid: str, mux: Mux) -> Tunnel | None:
        """A cluster's tunnel over a connection, unless another one took its place."""
        ...


class Arrivals:
    """Serves connections.

    Args:
        door: says who may come in.
        registry: where tunnels go.
        pipeline: serves what agents ask, such as DesiredStateService.
        broker: for agents that reach the message broker through their tunnel alone.
        figures: counts those that were refused.
        limits: of each tunnel.
    """

    def __init__(
        self,
        door: Door,
        registry: Registry,
        *,
        pipeline: Pipeline,
        broker: BrokerStreams,
        figures: LinkMetrics,
        limits: Limits | None = None,
    ) -> None:
        self._door, self._registry, self._pipeline, self._broker = door, registry, pipeline, broker
        self._figures, self._limits = figures, limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting: dict[AnyConnection, asyncio.Event] = {}

    def connection(self) -> Connection:
        """The protocol of a connection that somebody makes."""
        return Connection(
            odd=True, accept=self._accept_from, on_made=self.made,
            limits=self._limits, name="hub tunnel", now_millis=self._door.now_millis,
        )  # fmt: skip

    def socket_connection(self, socket: web.WebSocketResponse, certificate: x509.Certificate, peer: str) -> SocketConnection:
        """The same over a WebSocket whose other end proved that it holds a certificate's key."""
        return SocketConnection(
            socket, odd=True, accept=self._accept_from, peer=peer,
            certificate=certificate, limits=self._limits, name="hub tunnel", now_millis=self._door.now_millis,
        )  # fmt: skip

    def made(self, connection: AnyConnection) -> None:
        """A connection stands: greets it, and keeps it until it ends."""
        self._greeting[connection] = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._run(connection), name=f"tunnel from {connection.peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends what is still being greeted or kept."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, connection: AnyConnection) -> None:
        """A connection from its first byte to its last; a task's whole life."""
        mux = connection.mux
        tunnel: Tunnel | None = None
        try:
            if is_gateway(connection):
                expires = await self._door.gateway(connection)
            else:
                tunnel, expires = await self._door.agent(connection)
                self._registry.take(tunnel)
        except Refused as refused:
            self._figures.refused.labels(refused.why).inc()
            _log.warning("tunnel.refused", why=refused.why, address=connection.peer, cluster_uid=refused.uid)
            mux.abort(refused.why)
            return
        except Exception as error:  # noqa: BLE001 -- whatever broke, this connection is over and the others go on
            _log.error("tunnel.greeting_failed", address=connection.peer, exc_info=error)
            mux.abort("greeting failed")
            return
        finally:
            self._greeting.pop(connection).set()
        try:
            async with asyncio.timeout(expires):
                await mux.closed()
        except TimeoutError:
            mux.abort("the peer's certificate expired")
        finally:
            if tunnel is not None:
                self._registry.drop(tunnel)

    def _accept_from(self, connection: AnyConnection) -> Accept:
        """Serves streams; the first may come with the other end's greeting, before it is known whether that is good."""
        serve = ForwardDesk(self._registry).serve if is_gateway(connection) else self._from_agent(connection)

        async def accept(stream: Stream, header: bytes) -> None:
            if (greeting := self._greeting.get(connection)) is not None:
                await greeting.wait()  # an end that is refused is dropped, and its streams with it
            await serve(stream, header)

        return accept

    def _from_agent(self, connection: AnyConnection) -> Accept:
        uid = cluster_of(connection.certificate())

        async def serve(stream: Stream, header: bytes) -> None:
            tunnel = self._registry.of(uid, connection.mux)
            if tunnel is None:
                stream.reset(Reset.LOST, "another tunnel took its place")
                return
            try:
                opened = tunnel_pb2.StreamHeader.FromString(header)
            except DecodeError:
                stream.reset(Reset.BROKEN, "the header cannot be read")
                return
            await self._serve(stream, opened, tunnel)

        return serve

    async def _serve(self, stream: Stream, opened: tunnel_pb2.StreamHeader, tunnel: Tunnel) -> None:
        """Serves what an agent asks; the cluster is its certificate's, whatever the request says."""
        purpose = opened.WhichOneof("purpose")
        if purpose == "broker" and not opened.broker.ByteSize():  # it names nothing, so nobody can think that it was heeded
            await self._broker.serve(stream, tunnel.uid)
        elif purpose == "call":
            metadata = {PROTOCOL_KEY: str(tunnel.protocol)}
            await calls.serve(
                stream, opened.call, self._pipeline, peer=CLUSTER + tunnel.uid, traceparent=opened.traceparent,
                address=tunnel.address, metadata=metadata,
            )  # fmt: skip
        else:
            stream.reset(Reset.REFUSED, "not served")
