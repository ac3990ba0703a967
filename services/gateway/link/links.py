"""Links: which clusters are online, and the road to each."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from aiohttp import web
from cryptography import x509
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from prometheus_client import REGISTRY, CollectorRegistry

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.clock import Clock, new_id
from libs.crypt.ca import spiffe_id
from libs.crypt.signing import SigningKey
from libs.faults import Unavailable
from libs.rpc.peers import CLUSTER
from libs.rpc.pipeline import Pipeline
from libs.tunnel import Limits, Lost, Reset, Stream, calls
from libs.tunnel.kubernetes import Request
from libs.tunnel.tcp import Connection, listen
from libs.tunnel.websocket import SocketConnection
from services.gateway.fleet import PROTOCOL_KEY
from services.gateway.fleet.health_store import Measure
from services.gateway.link import metrics
from services.gateway.link.announcer import Announcer, OnChange
from services.gateway.link.exchange import Body, Exchange, Renew
from services.gateway.link.grants import Grants, Principal
from services.gateway.link.tunnel import HEAD_SECONDS, Tunnel

PROTOCOLS = (2, 1)  # newest first; each release speaks the one before it too
GREETING_SECONDS = 10.0
CALL_SECONDS = 30.0
RETRY_AFTER = timedelta(seconds=5)
_FLAPS = 3  # replacements within _FLAP_SECONDS that are reported
_FLAP_SECONDS = 60.0
_log = log.get("services.gateway.link")
Allowed = Callable[[str, str], Awaitable[bool]]
AnyConnection = Connection | SocketConnection


class ClusterOffline(Unavailable):
    """The cluster's agent has no tunnel to this hub now."""

    reason = "CLUSTER_OFFLINE"


class Links:
    """The registry of tunnels.

    Args:
        hub_uid: uid of this hub, which agents keep.
        version: of this program.
        pipeline: serves what agents ask, such as DesiredStateService.
        allowed: whether a cluster uid may connect with the certificate of a serial number (lower-case hex).
        on_change: told of a cluster that came online or went offline, again until it does not raise.
        clock: hub time.
        registry: where the metrics go.
        limits: of each tunnel.
        protocols: versions of the protocol that this hub speaks, newest first.
    """

    def __init__(
        self, *, hub_uid: str, version: str, pipeline: Pipeline, allowed: Allowed, clock: Clock, on_change: OnChange | None = None,
        registry: CollectorRegistry = REGISTRY, limits: Limits | None = None, protocols: Sequence[int] = PROTOCOLS,
    ) -> None:  # fmt: skip
        self.hub_uid = hub_uid
        self._version = version
        self._pipeline = pipeline
        self._allowed = allowed
        self._clock = clock
        self._limits = limits
        self._protocols = tuple(protocols)
        self._key = SigningKey.generate(new_id().hex)
        self._tunnels: dict[str, Tunnel] = {}
        self._replaced: dict[str, deque[float]] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._announcer = Announcer(on_change) if on_change else None
        figures = metrics.of(registry)
        self._online, self._refused = figures.online, figures.refused
        self._server: asyncio.Server | None = None

    # -- life

    async def serve(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Starts to listen; the port in use."""
        self._server = await listen(host, port, tls, self.connection)
        if self._announcer is not None:
            self._announcer.start()
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stops listening and drops all tunnels."""
        if self._server is not None:
            self._server.close()
        for tunnel in list(self._tunnels.values()):
            tunnel.mux.abort("the hub stops")
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        if self._announcer is not None:
            await self._announcer.close()

    # -- for callers

    def online(self, uid: str) -> bool:
        """Whether a cluster's agent has a tunnel."""
        return uid in self._tunnels

    def states(self) -> Mapping[str, str]:
        """Version of the agent of each cluster that is online, by uid."""
        return {uid: tunnel.version for uid, tunnel in self._tunnels.items()}

    def serials(self) -> Mapping[str, str]:
        """Serial number (hex) of the certificate of each tunnel, by cluster uid."""
        return {uid: tunnel.serial for uid, tunnel in self._tunnels.items()}

    def measures(self) -> Mapping[str, Measure]:
        """What each tunnel tells of itself, by cluster uid."""
        now = self._clock.monotonic()
        return {
            uid: Measure(t.mux.rtt, t.mux.peer_ahead_millis / 1000, t.mux.time() - t.mux.heard, flapping=self._flaps(uid, now))
            for uid, t in self._tunnels.items()
        }

    def _flaps(self, uid: str, now: float) -> bool:
        times = self._replaced.get(uid) or deque[float]()
        return len(times) == _FLAPS and now - times[0] < _FLAP_SECONDS

    async def call(
        self,
        uid: str,
        method: MethodDescriptor,
        request: Message,
        principal: Principal,
        timeout: float = CALL_SECONDS,
        *,
        cluster: str = "",
    ) -> Any:
        """Calls one of the agent's services as a principal.

        Args:
            uid: the cluster's.
            method: from the service's descriptor.
            request: its request.
            principal: as whom.
            timeout: seconds.
            cluster: the cluster's name, for messages.

        Raises:
            Fault: what the agent answered; ClusterOffline; DeadlineExceeded.
        """
        return await self._tunnel(uid, cluster).call(method, request, principal, timeout=timeout)

    async def kubernetes(
        self, uid: str, request: Request, body: Body, principal: Principal, *,
        renew: Renew | None = None, cluster: str = "", head_seconds: float | None = HEAD_SECONDS,
    ) -> Exchange:  # fmt: skip
        """Sends a Kubernetes request; the exchange must be closed.

        Args:
            uid: the cluster's.
            request: method, path, query, headers and upgrade.
            body: bytes, an iterator of them, or None.
            principal: as whom.
            renew: asks at half a grant's life whether the caller still may, and as whom; None for unattended work.
            cluster: the cluster's name, for messages.
            head_seconds: how long the head of the answer may take; None for what may be quiet, such as a watch.

        Raises:
            Fault: ClusterOffline, Invalid, PermissionDenied, DeadlineExceeded, or why the API server could not be asked.
        """
        tunnel = self._tunnel(uid, cluster)
        return await tunnel.kubernetes(request, body, principal, renew=renew, head_seconds=head_seconds)

    def disconnect(self, uid: str, why: str) -> bool:
        """Drops a cluster's tunnel, because it was revoked or removed; whether there was one."""
        tunnel = self._tunnels.get(uid)
        if tunnel is not None:
            tunnel.mux.abort(why)
        return tunnel is not None

    def _tunnel(self, uid: str, cluster: str) -> Tunnel:
        tunnel = self._tunnels.get(uid)
        if tunnel is None:
            name = cluster or uid
            message = f"cluster {name} is offline: its agent is not connected to the hub; try again when it is"
            raise ClusterOffline(message, {"cluster": name}, retry_after=RETRY_AFTER)
        return tunnel

    # -- connections

    def connection(self) -> Connection:
        """The protocol of a connection that an agent makes."""
        return Connection(
            odd=True, accept=lambda c: lambda stream, header: self._accept(c, stream, header), on_made=self.made,
            limits=self._limits, name="hub tunnel", now_millis=self._now_millis,
        )  # fmt: skip

    def socket_connection(self, socket: web.WebSocketResponse, certificate: x509.Certificate, peer: str) -> SocketConnection:
        """The same over a WebSocket whose other end proved that it holds a certificate's key."""
        return SocketConnection(
            socket, odd=True, accept=lambda c: lambda stream, header: self._accept(c, stream, header), peer=peer,
            certificate=certificate, limits=self._limits, name="hub tunnel", now_millis=self._now_millis,
        )  # fmt: skip

    def _now_millis(self) -> int:
        return int(self._clock.now().timestamp() * 1000)

    def made(self, connection: AnyConnection) -> None:
        """A connection stands: greets it, and keeps it until it ends."""
        task = asyncio.get_running_loop().create_task(self._run(connection), name=f"tunnel from {connection.peer}")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _run(self, connection: AnyConnection) -> None:
        """A connection from its first byte to its last; a task's whole life."""
        mux = connection.mux
        try:
            tunnel, expires = await self._greet(connection)
        except _Refused as refused:
            self._refused.labels(refused.why).inc()
            _log.warning("tunnel.refused", why=refused.why, address=connection.peer, cluster_uid=refused.uid)
            mux.abort(refused.why)
            return
        except Exception as error:  # noqa: BLE001 -- whatever broke, this connection is over and the others go on
            _log.error("tunnel.greeting_failed", address=connection.peer, exc_info=error)
            mux.abort("greeting failed")
            return
        self._take(tunnel)
        try:
            async with asyncio.timeout(expires):
                await mux.closed()
        except TimeoutError:
            mux.abort("the agent's certificate expired")
        finally:
            self._drop(tunnel)

    async def _greet(self, connection: AnyConnection) -> tuple[Tunnel, float]:
        mux = connection.mux
        certificate = connection.certificate()
        uid = cluster_of(certificate)
        if certificate is None or not uid:
            raise _Refused("no cluster's certificate")
        if not await self._allowed(uid, f"{certificate.serial_number:x}"):
            raise _Refused("certificate not allowed", uid)
        session = new_id().hex
        keys = {self._key.kid: self._key.public}
        ours = tunnel_pb2.Hello(
            protocols=self._protocols, version=self._version, session=session, hub_uid=self.hub_uid,
            time_millis=self._now_millis(), grant_keys=keys,
        )  # fmt: skip
        mux.hello(ours.SerializeToString())
        try:
            theirs = tunnel_pb2.Hello.FromString(await mux.greeted(GREETING_SECONDS))
        except (TimeoutError, Lost, DecodeError) as error:
            raise _Refused("no greeting", uid) from error
        protocol = next((p for p in self._protocols if p in theirs.protocols), 0)
        if not protocol:
            raise _Refused("no common protocol", uid)
        grants = Grants(self._key, cluster_uid=uid, session=session, now_millis=self._now_millis)
        tunnel = Tunnel(
            uid, theirs.version[:64], session, connection.peer, mux, grants, self._clock.monotonic(),
            f"{certificate.serial_number:x}", protocol,
        )  # fmt: skip
        return tunnel, (certificate.not_valid_after_utc - self._clock.now()).total_seconds()

    def _take(self, tunnel: Tunnel) -> None:
        old = self._tunnels.get(tunnel.uid)
        self._tunnels[tunnel.uid] = tunnel
        self._online.set(len(self._tunnels))
        _log.info("tunnel.online", cluster_uid=tunnel.uid, version=tunnel.version, address=tunnel.address)
        if old is not None:
            self._report_flapping(old, tunnel)
            old.mux.abort("a newer tunnel took its place")
        if self._announcer is not None:
            self._announcer.tell(tunnel.uid, tunnel.version, online=True)

    def _report_flapping(self, old: Tunnel, new: Tunnel) -> None:
        """Two agents with one certificate push each other out; that is worth an operator's eye."""
        times = self._replaced.setdefault(new.uid, deque(maxlen=_FLAPS))
        times.append(new.since)
        if len(times) == _FLAPS and new.since - times[0] < _FLAP_SECONDS:
            _log.error("tunnel.flapping", cluster_uid=new.uid, address=new.address, other_address=old.address)

    def _drop(self, tunnel: Tunnel) -> None:
        if self._tunnels.get(tunnel.uid) is not tunnel:
            return
        del self._tunnels[tunnel.uid]
        self._online.set(len(self._tunnels))
        _log.info("tunnel.offline", cluster_uid=tunnel.uid)
        if self._announcer is not None:
            self._announcer.tell(tunnel.uid, tunnel.version, online=False)

    async def _accept(self, connection: AnyConnection, stream: Stream, header: bytes) -> None:
        """Serves a call of the agent; the cluster is its certificate's, whatever the request says."""
        uid = cluster_of(connection.certificate())
        tunnel = self._tunnels.get(uid)
        try:
            opened = tunnel_pb2.StreamHeader.FromString(header)
        except DecodeError:
            stream.reset(Reset.BROKEN, "the header cannot be read")
            return
        if tunnel is None or tunnel.mux is not connection.mux or opened.WhichOneof("purpose") != "call":
            stream.reset(Reset.REFUSED, "not served")
            return
        peer, parent, metadata = CLUSTER + uid, opened.traceparent, {PROTOCOL_KEY: str(tunnel.protocol)}
        await calls.serve(stream, opened.call, self._pipeline, peer=peer, traceparent=parent, address=connection.peer, metadata=metadata)


class _Refused(Exception):
    def __init__(self, why: str, uid: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.uid = uid


def cluster_of(certificate: x509.Certificate | None) -> str:
    """The cluster uid that a certificate names; empty for none."""
    name = spiffe_id(certificate) if certificate is not None else ""
    uid = name.removeprefix(CLUSTER) if name.startswith(CLUSTER) else ""
    return "" if "/" in uid else uid
