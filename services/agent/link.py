"""The agent's end of the tunnel: dial, greet, serve, and dial again for ever.

What the hub asks is done only under a grant that `grants.GrantBook` finds good: a typed call goes to the agent's own
services, a Kubernetes request to `proxy.Proxy`. A stream ends when its grant does, unless the hub renews it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.faults import Fault, Unavailable
from libs.rpc.pipeline import Pipeline
from libs.tunnel import Limits, Lost, Mux, Stream, calls, websocket
from libs.tunnel.mux import Accept
from libs.tunnel.pings import wall_millis
from libs.tunnel.tcp import Connection, dial
from libs.tunnel.websocket import Unproved
from services.agent.desk import Desk, by_grant, principal_of
from services.agent.grants import GrantBook
from services.agent.hubs import Hubs
from services.agent.policy import LocalPolicy
from services.agent.proxy import Proxy

__all__ = ["AgentLink", "Edge", "HubAway", "Session", "by_grant", "principal_of"]
PROTOCOLS = (2, 1)  # newest first; 2 adds pausing and PreviewService
HUB_NAME = "gateway.hub.kubegems.internal"
_GREETING_SECONDS = 10.0
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_LEAVING_SECONDS = 60.0  # most that a tunnel lives on beside the next
_STEADY_SECONDS = 5.0  # a tunnel that stood so long starts the back-off anew; less than the silence that tells of a hub that stands still
_CALL_SECONDS = 30.0
_log = log.get("services.agent.link")
OnConnect = Callable[["Session"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Session:
    """One tunnel that stands.

    Attributes:
        id: the hub's id of it.
        hub_uid: uid of the hub.
        hub_version: version of the hub.
    """

    id: str
    hub_uid: str
    hub_version: str


@dataclass(frozen=True, slots=True)
class Edge:
    """The hub's HTTPS edge, as a way for the tunnel.

    Attributes:
        url: `https://host:port`, several with commas between.
        tls: makes the context that trusts its certificate, for each dial.
        identity: certificate and key (PEM), for each dial.
        server_name: name in the edge's certificate; None: the host of the URL.
    """

    url: str
    tls: Callable[[], ssl.SSLContext]
    identity: Callable[[], tuple[str, str]]
    server_name: str | None = None


class HubAway(Unavailable):
    """There is no tunnel to the hub now."""

    reason = "HUB_AWAY"


class AgentLink:
    """Keeps a tunnel to the hub.

    Args:
        addresses: `host:port` of the hub's tunnel listeners, with commas between.
        tls: makes the TLS context for each dial, so that a renewed certificate is used.
        cluster_uid: this cluster's uid.
        version: of this program.
        pipeline: answers the hub's typed calls; make it with `peers=by_grant`.
        proxy: answers Kubernetes requests.
        server_name: name in the hub's certificate.
        on_connect: awaited in a task of its own each time a tunnel stands; cancelled when it breaks.
        limits: of the tunnel.
        protocols: versions of the protocol that this end speaks, newest first.
        policy: what the cluster's owner denies; None for nothing.
        edge: the HTTPS edge to go through by WebSocket; None: TCP to `addresses`.
    """

    def __init__(
        self, *, addresses: str, tls: Callable[[], ssl.SSLContext], cluster_uid: str, version: str, pipeline: Pipeline,
        proxy: Proxy, server_name: str = HUB_NAME, on_connect: OnConnect | None = None, limits: Limits | None = None,
        protocols: Sequence[int] = PROTOCOLS, policy: LocalPolicy | None = None, edge: Edge | None = None,
    ) -> None:  # fmt: skip
        self._hubs, self._server_name = Hubs.of(edge.url if edge is not None else addresses), server_name
        self._address = ""
        self._tls = tls
        self._cluster_uid = cluster_uid
        self._version = version
        self._pipeline = pipeline
        self._proxy = proxy
        self._on_connect = on_connect
        self._limits = limits
        self._protocols = tuple(protocols)
        self._policy = policy
        self._edge = edge
        self._mux: Mux | None = None
        self._standing = asyncio.Event()
        self._delay = _FIRST_DELAY
        self._redial = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self.session: Session | None = None
        self.on_refused: Callable[[], None] = lambda: None  # the hub hung up instead of greeting: it may not know our certificate

    # -- for the agent's other parts

    @property
    def connected(self) -> bool:
        """Whether a tunnel stands."""
        return self._mux is not None

    @property
    def hub_uid(self) -> str:
        """Uid of the hub that the tunnel leads to; empty while none stands."""
        return self.session.hub_uid if self.session is not None else ""

    async def wait_connected(self) -> None:
        """Returns when a tunnel stands."""
        await self._standing.wait()

    async def call(self, method: MethodDescriptor, request: Message, timeout: float = _CALL_SECONDS) -> Any:
        """Calls the hub; waits for a tunnel within the timeout. Raises Fault, HubAway when there is none."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        try:
            async with asyncio.timeout_at(until):
                await self._standing.wait()
        except TimeoutError as error:
            raise HubAway("the hub cannot be reached") from error
        mux = self._mux
        if mux is None:
            raise HubAway("the hub cannot be reached")
        return await calls.unary(mux, method, request, timeout=max(until - loop.time(), 0.001))

    @property
    def address(self) -> str:
        """Where the last dial went."""
        return self._address

    async def open(self, header: tunnel_pb2.StreamHeader, timeout: float = _CALL_SECONDS) -> Stream:
        """Opens a stream to the hub; waits for a tunnel within the timeout. Raises HubAway, StreamEnded."""
        try:
            async with asyncio.timeout(timeout):
                await self._standing.wait()
        except TimeoutError as error:
            raise HubAway("the hub cannot be reached") from error
        if self._mux is None:
            raise HubAway("the hub cannot be reached")
        return self._mux.open(header.SerializeToString())

    def reconnect(self) -> None:
        """Dials anew at once, as after the certificate was renewed; streams that are open end."""
        self._redial.set()
        if self._mux is not None:
            self._mux.abort("reconnecting")

    def hub_millis(self) -> int:
        """The hub's time, in milliseconds since 1970; our own while no tunnel stands."""
        return self._mux.pings.peer_now_millis() if self._mux is not None else wall_millis()

    # -- the loop

    async def run(self) -> None:
        """Keeps a tunnel, for ever."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                started = loop.time()
                asked_to_go = await self._until_lost_or_left()
                if loop.time() - started > _STEADY_SECONDS or self._redial.is_set() or asked_to_go:
                    self._delay = _FIRST_DELAY
                await self._pause()
        finally:
            if self._leaving:
                for task in self._leaving:
                    task.cancel()
                await asyncio.wait(self._leaving)

    async def _until_lost_or_left(self) -> bool:
        """One tunnel until it is lost, or until the hub asks to go elsewhere: then it lives on beside the next. Whether it does."""
        left = asyncio.Event()
        tunnel = asyncio.create_task(self._once(left), name="tunnel")
        self._leaving.add(tunnel)
        tunnel.add_done_callback(self._leaving.discard)
        leaving = asyncio.create_task(left.wait(), name="asked to go")
        try:
            await asyncio.wait({tunnel, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        if not tunnel.done():
            tunnel.get_loop().call_later(_LEAVING_SECONDS, tunnel.cancel)
            return True
        tunnel.result()
        return False

    async def _pause(self) -> None:
        """Waits a random part of the back-off, so that many agents do not come back at once."""
        delay = random.uniform(_FIRST_DELAY / 5, self._delay)  # noqa: S311 -- jitter
        self._delay = min(self._delay * 2, _LONGEST_DELAY)
        try:
            async with asyncio.timeout(delay):
                await self._redial.wait()
            self._delay = _FIRST_DELAY  # what made it fail may be over
        except TimeoutError:
            pass
        self._redial.clear()

    async def _once(self, left: asyncio.Event) -> None:
        """One tunnel, from dial to loss."""
        try:
            await self._dialled_and_used(left)
        except (OSError, TimeoutError, Lost, DecodeError, ValueError, Unproved, _Unfit) as error:
            _log.warning("link.down", hub=self._address, cause=_cause(error))

    async def _dialled_and_used(self, left: asyncio.Event) -> None:
        greeted: asyncio.Future[Desk] = asyncio.get_running_loop().create_future()

        async def accept(stream: Stream, header: bytes) -> None:
            """The hub's first streams may come with its greeting; they carry grants that later ones only name."""
            desk = await asyncio.shield(greeted)
            await desk.serve(stream, header)

        async with self._dialled(accept) as mux:
            await self._used(mux, greeted, left)

    async def _used(self, mux: Mux, greeted: asyncio.Future[Desk], left: asyncio.Event) -> None:
        """A connection from its greeting to its loss."""
        try:
            hello = await self._greet(mux)
            book = GrantBook(
                cluster_uid=self._cluster_uid, session=hello.session, keys=hello.grant_keys, hub_millis=mux.pings.peer_now_millis
            )  # fmt: skip
            desk = Desk(
                mux, book, pipeline=self._pipeline, proxy=self._proxy, address=self._address, policy=self._policy, on_go_away=left.set
            )  # fmt: skip
            self._hubs.reached()
            greeted.set_result(desk)
            await self._stand(mux, Session(hello.session, hello.hub_uid, hello.version))
        finally:
            if greeted.done():
                greeted.result().close()
            mux.abort("the agent lets go")
            await mux.closed()

    @asynccontextmanager
    async def _dialled(self, accept: Accept) -> AsyncIterator[Mux]:
        """A connection by the configured carrier."""
        self._address = address = await self._hubs.next()
        if self._edge is None:
            host, _, port = address.rpartition(":")
            connection = await dial(
                host.strip("[]"), int(port), self._tls(),
                lambda: Connection(odd=False, accept=lambda _: accept, limits=self._limits, name="agent tunnel"),
                server_name=self._server_name,
            )  # fmt: skip
            yield connection.mux
            return
        carried, session = await websocket.dial(
            address, self._edge.tls(), self._edge.identity(), server_name=self._edge.server_name, accept=lambda _: accept,
            limits=self._limits, name="agent tunnel",
        )  # fmt: skip
        running = asyncio.create_task(carried.run(), name="tunnel socket")
        try:
            yield carried.mux
        finally:
            carried.abort()
            await asyncio.wait([running])
            await session.close()

    async def _greet(self, mux: Mux) -> tunnel_pb2.Hello:
        mux.hello(tunnel_pb2.Hello(protocols=self._protocols, version=self._version).SerializeToString())
        try:
            hello = tunnel_pb2.Hello.FromString(await mux.greeted(_GREETING_SECONDS))
        except Lost:
            self.on_refused()
            raise
        protocol = next((p for p in self._protocols if p in hello.protocols), 0)
        if not protocol or not hello.session or not hello.hub_uid:
            raise _Unfit("the hub speaks another protocol")
        if not mux.pings.rtt:
            mux.pings.peer_ahead_millis = hello.time_millis - wall_millis()
        return hello

    async def _stand(self, mux: Mux, session: Session) -> None:
        self._mux, self.session = mux, session
        self._standing.set()
        _log.info("link.up", hub=self._address, hub_uid=session.hub_uid, session=session.id)
        greeting = asyncio.create_task(self._connected(session), name="link greeting")
        try:
            await mux.closed()
        finally:
            if self._mux is mux:
                self._mux = self.session = None
                self._standing.clear()
            greeting.cancel()
            await asyncio.wait([greeting])

    async def _connected(self, session: Session) -> None:
        if self._on_connect is None:
            return
        try:
            await self._on_connect(session)
        except Fault as fault:
            _log.warning("link.greeting_failed", code=fault.code.name, reason=fault.reason)
        except Exception as error:  # noqa: BLE001 -- a task's last line: the tunnel stands whatever its listener thinks
            _log.error("link.greeting_failed", exc_info=error)


class _Unfit(Exception):
    """The peer is not the hub we can talk to."""


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
