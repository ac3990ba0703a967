"""Links: which clusters are online, and the road to each."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from prometheus_client import REGISTRY, CollectorRegistry

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.clock import Clock, new_id
from libs.crypt.signing import SigningKey
from libs.faults import Fault, Unavailable
from libs.rpc.pipeline import Pipeline
from libs.tunnel import Limits, Mux
from libs.tunnel.kubernetes import Request
from libs.tunnel.tcp import listen
from services.gateway.fleet.health_store import Measure
from services.gateway.link import metrics
from services.gateway.link.announcer import Announcer, OnChange
from services.gateway.link.arrivals import Arrivals
from services.gateway.link.broker_stream import BrokerStreams
from services.gateway.link.door import Allowed, Door, Number, Refused, counter
from services.gateway.link.exchange import Body, Exchange, Renew
from services.gateway.link.flaps import Flaps
from services.gateway.link.grants import Principal
from services.gateway.link.leaving import Leaving
from services.gateway.link.peers import Peers
from services.gateway.link.road import HEAD_SECONDS, Road
from services.gateway.link.tunnel import Tunnel

PROTOCOLS = (2, 1)  # newest first; each release speaks the one before it too
CALL_SECONDS = 30.0
RETRY_AFTER = timedelta(seconds=5)
_log = log.get("services.gateway.link")
T = TypeVar("T")


class ClusterOffline(Unavailable):
    """The cluster's agent has no tunnel to this hub now."""

    reason = "CLUSTER_OFFLINE"


class Links:
    """The registry of tunnels.

    Attributes:
        hub_uid: uid of this hub, which agents keep.
        arrivals: takes connections.

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
        number: the next tunnel's number, over all gateways of the hub; None: this is the only one.
        peers: the other gateways; None: there are none.
        broker: `host:port` of the message broker, for agents that reach it through their tunnel alone; empty: for none.
    """

    def __init__(
        self, *, hub_uid: str, version: str, pipeline: Pipeline, allowed: Allowed, clock: Clock, on_change: OnChange | None = None,
        registry: CollectorRegistry = REGISTRY, limits: Limits | None = None, protocols: Sequence[int] = PROTOCOLS,
        number: Number | None = None, peers: Peers | None = None, broker: str = "",
    ) -> None:  # fmt: skip
        self.hub_uid = hub_uid
        self._clock = clock
        self._door = Door(
            hub_uid, version, tuple(protocols), allowed, number or counter(), clock, SigningKey.generate(new_id().hex)
        )  # fmt: skip
        self._peers = peers
        self._broker = BrokerStreams(broker)
        self._tunnels: dict[str, Tunnel] = {}
        self._leaving = Leaving()
        self._flaps = Flaps()
        self._announcer = Announcer(on_change) if on_change else None
        figures = metrics.of(registry)
        self._online, self._forwarded = figures.online, figures.forwarded
        self.arrivals = Arrivals(self._door, self, pipeline=pipeline, broker=self._broker, figures=figures, limits=limits)
        self._server: asyncio.Server | None = None
        if peers is not None:
            peers.presence.of(self)

    # -- life

    async def serve(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Starts to listen; the port in use."""
        self._server = await listen(host, port, tls, self.arrivals.connection)
        if self._announcer is not None:
            self._announcer.start()
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def draining(self) -> bool:
        """Whether new tunnels are refused."""
        return self._leaving.begun

    async def go_away(self) -> None:
        """Takes no new tunnels, and asks agents to go to another gateway at once."""
        if self._server is not None:
            self._server.close()
        if self._peers is not None:
            await self._peers.presence.drain()
        self._leaving.begin(self._tunnels.values())

    async def drain(self, seconds: float) -> None:
        """After `go_away`: lets what is open end, for some seconds, then breaks it off and says why."""
        elsewhere = self._peers is not None and self._peers.presence.others
        self._broker.leave()
        await self._leaving.wait(self._tunnels, seconds, elsewhere=elsewhere)

    async def close(self) -> None:
        """Stops listening and drops all tunnels."""
        if self._server is not None:
            self._server.close()
        self._leaving.close()
        for tunnel in list(self._tunnels.values()):
            tunnel.mux.abort("the hub stops")
        await self.arrivals.close()
        if self._peers is not None:
            self._peers.close()
        if self._announcer is not None:
            await self._announcer.close()

    def tell(self) -> None:
        """Tells of every tunnel again, to whom had forgotten."""
        for tunnel in self._tunnels.values():
            self._told(tunnel, online=True)

    # -- for callers

    def online(self, uid: str) -> bool:
        """Whether a cluster's agent has a tunnel, here or at another gateway."""
        return uid in self._tunnels or (self._peers is not None and self._peers.holds(uid))

    def here(self, uid: str) -> bool:
        """Whether a cluster's agent has its tunnel here."""
        return uid in self._tunnels

    def states(self) -> Mapping[str, str]:
        """Version of the agent of each cluster whose tunnel is here, by uid."""
        return {uid: tunnel.version for uid, tunnel in self._tunnels.items()}

    def serials(self) -> Mapping[str, str]:
        """Serial number (hex) of the certificate of each tunnel, by cluster uid."""
        return {**self._leaving.serials(), **{uid: tunnel.serial for uid, tunnel in self._tunnels.items()}}

    def numbers(self) -> Mapping[str, int]:
        """Number of each tunnel, by cluster uid."""
        return {uid: tunnel.number for uid, tunnel in self._tunnels.items()}

    def measures(self) -> Mapping[str, Measure]:
        """What each tunnel tells of itself, by cluster uid."""
        now = self._clock.monotonic()
        return {
            uid: Measure(
                t.mux.pings.rtt, t.mux.pings.peer_ahead_millis / 1000, t.mux.time() - t.mux.pings.heard, flapping=self._flaps.seen(uid, now)
            )
            for uid, t in self._tunnels.items()
        }

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
        return await self._on_road(uid, cluster, lambda road: road.call(method, request, principal, timeout=timeout))

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
        return await self._on_road(
            uid, cluster, lambda road: road.kubernetes(request, body, principal, renew=renew, head_seconds=head_seconds)
        )

    def disconnect(self, uid: str, why: str) -> bool:
        """Drops a cluster's tunnel, because it was revoked or removed; whether there was one here."""
        tunnel = self._tunnels.get(uid)
        if tunnel is not None:
            tunnel.mux.abort(why)
        return self._leaving.disconnect(uid, why) or tunnel is not None

    def tunnel(self, uid: str, cluster: str = "") -> Tunnel:
        """A cluster's tunnel held here; raises ClusterOffline."""
        tunnel = self._tunnels.get(uid)
        if tunnel is None:
            raise self._offline(uid, cluster)
        return tunnel

    def _offline(self, uid: str, cluster: str) -> ClusterOffline:
        name = cluster or uid
        message = f"cluster {name} is offline: its agent is not connected to the hub; try again when it is"
        return ClusterOffline(message, {"cluster": name}, retry_after=RETRY_AFTER)

    async def _on_road(self, uid: str, cluster: str, ask: Callable[[Road], Awaitable[T]]) -> T:
        road = await self._road(uid, cluster)
        try:
            return await ask(road)
        except Fault as fault:
            if fault.reason == ClusterOffline.reason and not isinstance(road, Tunnel):
                raise self._offline(uid, cluster) from fault  # the gateway that was asked does not know its name
            raise

    async def _road(self, uid: str, cluster: str) -> Road:
        if uid not in self._tunnels and self._peers is not None and (road := await self._peers.road(uid)) is not None:
            self._forwarded.inc()
            return road
        return self.tunnel(uid, cluster)

    # -- for the other gateways

    def holdings(self) -> Mapping[str, tunnel_pb2.TunnelHolder]:
        """Session, number and time of each tunnel, by cluster uid."""
        now, millis = self._clock.monotonic(), self._door.now_millis()
        return {
            uid: tunnel_pb2.TunnelHolder(session=t.session, number=t.number, since_millis=millis - int((now - t.since) * 1000))
            for uid, t in self._tunnels.items()
        }

    def superseded(self, uid: str, number: int) -> None:
        """Another gateway has a newer tunnel of a cluster: ours ends, at once unless it was asked to go there."""
        tunnel = self._tunnels.get(uid)
        if tunnel is None or tunnel.number >= number:
            return
        if not self._leaving.begun:
            tunnel.mux.abort("a newer tunnel stands at another gateway")
            return
        del self._tunnels[uid]
        self._online.set(len(self._tunnels))
        self._leaving.add(tunnel)

    # -- for arrivals

    def take(self, tunnel: Tunnel) -> None:
        """A tunnel stands; raises Refused."""
        old = self._tunnels.get(tunnel.uid)
        if self._leaving.begun or (old is not None and old.number > tunnel.number):
            raise Refused("the gateway stops" if self._leaving.begun else "a newer tunnel stands", tunnel.uid)
        holder = self._peers.presence.holder(tunnel.uid) if self._peers is not None else None
        self._tunnels[tunnel.uid] = tunnel
        self._online.set(len(self._tunnels))
        _log.info("tunnel.online", cluster_uid=tunnel.uid, version=tunnel.version, address=tunnel.address)
        if old is not None:
            self._report_flapping(tunnel, old.address)
            old.mux.abort("a newer tunnel took its place")
        elif holder is not None and self._peers is not None and not self._peers.presence.draining(holder.replica):
            self._report_flapping(tunnel, f"gateway {holder.address}")
        self._told(tunnel, online=True)

    def _report_flapping(self, new: Tunnel, other: str) -> None:
        """Two agents with one certificate push each other out; that is worth an operator's eye."""
        if self._flaps.replaced(new.uid, new.since):
            _log.error("tunnel.flapping", cluster_uid=new.uid, address=new.address, other_address=other)

    def drop(self, tunnel: Tunnel) -> None:
        """It is gone."""
        self._leaving.discard(tunnel)
        if self._tunnels.get(tunnel.uid) is not tunnel:
            return
        del self._tunnels[tunnel.uid]
        self._online.set(len(self._tunnels))
        _log.info("tunnel.offline", cluster_uid=tunnel.uid)
        self._told(tunnel, online=False)

    def of(self, uid: str, mux: Mux) -> Tunnel | None:
        """A cluster's tunnel over a connection, also one whose agent was asked to go elsewhere."""
        tunnel = self._tunnels.get(uid)
        return tunnel if tunnel is not None and tunnel.mux is mux else self._leaving.of(mux)

    def _told(self, tunnel: Tunnel, *, online: bool) -> None:
        if self._peers is not None:
            self._peers.presence.touch(tunnel.uid)
        if self._announcer is not None:
            self._announcer.tell(tunnel.uid, tunnel.version, tunnel.number, online=online)
