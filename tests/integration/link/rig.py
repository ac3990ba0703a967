"""A hub's link and an agent joined by a real mTLS tunnel, with doubles for what stands around them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from aiohttp import web
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import desired_state_service_pb2, inventory_service_pb2
from libs import rpc
from libs.audit.entry import Entry
from libs.clock import Clock, SystemClock
from libs.crypt.ca import SPIFFE, Authority, Pair
from libs.faults import NotFound, PermissionDenied, Unauthenticated, Unavailable
from libs.kube import Connection
from libs.rpc.call import Call, Caller, Kind
from libs.tunnel import Limits
from libs.tunnel.kubernetes import Target
from libs.tunnel.tcp import client_tls, server_tls
from services.agent.link import AgentLink, Edge, by_grant, principal_of
from services.agent.policy import LocalPolicy
from services.agent.proxy import Proxy
from services.gateway.link.grants import ServicePrincipal
from services.gateway.link.kubernetes_edge import KubernetesEdge
from services.gateway.link.links import PROTOCOLS, Links
from services.gateway.link.socket import TunnelSocket

CLOCK = SystemClock()
INVENTORY = inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"]
DESIRED = desired_state_service_pb2.DESCRIPTOR.services_by_name["DesiredStateService"]
GET_INVENTORY = INVENTORY.methods_by_name["GetInventory"]
FETCH = DESIRED.methods_by_name["FetchDesiredState"]
DEV = ServicePrincipal("gems:user:dev", "11111111-1111-1111-1111-111111111111", ("gems:project:acme/shop:ops",))


class Inventory:
    """The agent's servicer double: answers who asked."""

    def __init__(self) -> None:
        self.answer: Callable[[Call], Awaitable[str]] | None = None

    async def GetInventory(self, request: object, call: Call) -> inventory_service_pb2.GetInventoryResponse:
        """Tells the principal in the version field."""
        version = await self.answer(call) if self.answer else principal_of(call).user
        reply = inventory_service_pb2.GetInventoryResponse()
        reply.inventory.kubernetes_version = version
        return reply


class Desired:
    """The hub's servicer double: answers which cluster asked."""

    def __init__(self) -> None:
        self.protocols: list[str] = []

    async def FetchDesiredState(
        self, request: desired_state_service_pb2.FetchDesiredStateRequest, call: Call
    ) -> desired_state_service_pb2.FetchDesiredStateResponse:
        """Tells the cluster's uid as the hub's; a payload of the size asked for as generation."""
        objects = [desired_state_service_pb2.DesiredObject(manifest=bytes(request.known_generation))] if request.known_generation else []
        self.protocols.append(call.metadata["kubegems-protocol"])
        return desired_state_service_pb2.FetchDesiredStateResponse(hub_uid=call.caller.id, objects=objects)

    async def ReportStatus(self, request: object, call: Call) -> desired_state_service_pb2.ReportStatusResponse:
        """Always away."""
        raise Unavailable("not now", {"what": "status"}, retry_after=timedelta(seconds=7))

    async def FetchInterest(self, request: object, call: Call) -> desired_state_service_pb2.FetchInterestResponse:
        """A mistake."""
        raise RuntimeError("planted canary")


@dataclass
class Access:
    """Identity and fleet: users by token."""

    clusters: dict[str, str] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    masters: set[str] = field(default_factory=set)
    away: bool = False

    def add(self, username: str, *groups: str) -> str:
        """A signed-in user; its token."""
        token = f"token-of-{username}-{uuid.uuid4().hex}"
        self.callers[token] = Caller(Kind.USER, username, str(uuid.uuid5(uuid.NAMESPACE_DNS, username)), f"session-{username}")
        self.groups[username] = groups
        return token

    async def cluster_uid(self, name: str) -> str | None:
        """By name."""
        return self.clusters.get(name)

    async def authenticate(self, token: str, cluster_uid: str) -> Caller:
        """By token."""
        caller = self.callers.get(token)
        if caller is None:
            raise Unauthenticated("sign in first")
        return await self.still(caller)

    async def still(self, caller: Caller) -> Caller:
        """Unless ended."""
        if self.away:
            raise Unavailable("the database is away")
        if caller.session in self.ended:
            raise Unauthenticated("sign in first")
        return caller

    def read_at(self) -> float:
        """Just now."""
        return time.monotonic()

    def visible(self, caller: Caller, name: str) -> bool:
        """Whoever has groups sees it."""
        return bool(self.groups[caller.id])

    async def principal(self, caller: Caller, cluster_uid: str) -> ServicePrincipal:
        """The user with its groups."""
        return ServicePrincipal(f"gems:user:{caller.id}", caller.uid, self.groups[caller.id])

    def permit(self, caller: Caller, target: Target, environment: str, address: str) -> None:
        """Nobody comes by an API key here."""

    async def impersonate(self, caller: Caller, cluster: str, cluster_uid: str, username: str) -> ServicePrincipal:
        """Who is among `masters` may act as whoever has groups."""
        if caller.id not in self.masters:
            raise PermissionDenied("may not act as others")
        if username not in self.groups:
            raise NotFound(f"users/{username} does not exist")
        return ServicePrincipal(f"gems:user:{username}", str(uuid.uuid5(uuid.NAMESPACE_DNS, username)), self.groups[username])

    async def environment(self, cluster_uid: str, namespace: str) -> str:
        """One known namespace."""
        return "tenants/acme/projects/shop/environments/dev" if namespace == "acme-shop-dev" else ""


@dataclass
class Journal:
    """Audit in memory."""

    records: list[Entry] = field(default_factory=list)
    intents: dict[UUID, Entry] = field(default_factory=dict)
    away: bool = False

    async def begin(self, entry: Entry) -> UUID:
        """Keeps an intent."""
        if self.away:
            raise Unavailable("the database is away")
        self.intents[entry.id] = entry
        return entry.id

    async def end(self, intent: UUID, entry: Entry) -> None:
        """Ends an intent."""
        del self.intents[intent]
        self.records.append(entry)

    def buffer(self, entry: Entry) -> None:
        """Keeps a read."""
        self.records.append(entry)


class Rig:
    """Hub, agents and edge of one test module."""

    def __init__(self, folder: Path, authority: Authority, *, clock: Clock = CLOCK, protocols: Sequence[int] = PROTOCOLS) -> None:
        self.folder = folder
        self.authority = authority
        self.access = Access()
        self.journal = Journal()
        self.changes: list[tuple[str, bool, str]] = []
        self.refused: set[str] = set()
        self.desired = Desired()
        (folder / "ca.crt").write_text(authority.certificate)
        names = ("gateway.hub.kubegems.internal", "localhost")
        self.pair("gateway", dns=names, uri=f"{SPIFFE}/hub/gateway")
        pipeline = rpc.Pipeline(rpc.methods(DESIRED, self.desired), registry=CollectorRegistry())
        self.links = Links(
            hub_uid="hub-1", version="1.0", pipeline=pipeline, allowed=self._allowed, clock=clock, on_change=self._changed,
            registry=CollectorRegistry(), limits=Limits(ping_every=0.5, ping_timeout=5), protocols=protocols,
        )  # fmt: skip
        self.edge = KubernetesEdge(self.links, self.access, self.journal)
        self.port = self.edge_port = 0

    def pair(self, name: str, *, dns: tuple[str, ...] = (), uri: str = "", lifetime: timedelta = timedelta(days=1)) -> Pair:
        """A certificate in the folder."""
        pair = self.authority.issue(name, now=CLOCK.now(), lifetime=lifetime, dns=dns, ips=("127.0.0.1",), uri=uri)
        pair.write(self.folder, name)
        return pair

    async def _allowed(self, uid: str, serial: str) -> bool:
        return uid not in self.refused and bool(int(serial, 16))

    async def _changed(self, uid: str, online: bool, version: str, number: int) -> None:
        self.changes.append((uid, online, version))

    def agent_tls(self, uid: str, *, lifetime: timedelta = timedelta(days=1), uri: str | None = None) -> Callable[[], ssl.SSLContext]:
        """TLS of an agent with a certificate of its own."""
        self.pair(uid, uri=uri if uri is not None else f"{SPIFFE}/cluster/{uid}", lifetime=lifetime)
        return lambda: client_tls(self.folder / f"{uid}.crt", self.folder / f"{uid}.key", self.folder / "ca.crt")

    def socket(self, uid: str) -> Edge:
        """The edge, for the agent with a certificate in the folder."""
        files = (self.folder / f"{uid}.crt", self.folder / f"{uid}.key")
        return Edge(
            f"https://127.0.0.1:{self.edge_port}",
            lambda: ssl.create_default_context(cafile=str(self.folder / "ca.crt")),
            lambda: (files[0].read_text(), files[1].read_text()),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        """The hub listens, the edge too."""
        tls = server_tls(self.folder / "gateway.crt", self.folder / "gateway.key", self.folder / "ca.crt")
        self.port = await self.links.serve("127.0.0.1", 0, tls)
        app = web.Application()
        app.add_routes([*self.edge.routes(), web.get("/tunnel", TunnelSocket(self.links, self.authority.certificate, CLOCK).handle)])
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        public = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        public.load_cert_chain(self.folder / "gateway.crt", self.folder / "gateway.key")
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=public)
        await site.start()
        self.edge_port = runner.addresses[0][1]
        watching = asyncio.create_task(self.edge.run(), name="edge")
        try:
            yield self
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await self.links.close()
            await runner.cleanup()

    @contextlib.asynccontextmanager
    async def agent(
        self, uid: str, upstream: Path, *, name: str = "", online: bool = True, protocols: Sequence[int] = PROTOCOLS,
        policy: LocalPolicy | None = None, carrier: str = "tcp",
    ) -> AsyncIterator[Agent]:  # fmt: skip
        """An agent that runs, for an API server of a kubeconfig."""
        proxy = Proxy(await Connection.from_kubeconfig(upstream))
        inventory = Inventory()
        pipeline = rpc.Pipeline(rpc.methods(INVENTORY, inventory), peers=by_grant, registry=CollectorRegistry())
        link = AgentLink(
            addresses=f"127.0.0.1:{self.port}", tls=self.agent_tls(uid), cluster_uid=uid, version="2.0", pipeline=pipeline, proxy=proxy,
            limits=Limits(ping_every=0.5, ping_timeout=5), protocols=protocols, policy=policy,
            edge=self.socket(uid) if carrier == "websocket" else None,
        )  # fmt: skip
        if name:
            self.access.clusters[name] = uid
        task = asyncio.create_task(link.run(), name=f"agent {uid}")
        try:
            if online:
                async with asyncio.timeout(15):
                    await link.wait_connected()
                    while not self.links.online(uid):
                        await asyncio.sleep(0.01)
            yield Agent(uid, link, inventory, task)
        finally:
            task.cancel()
            await asyncio.wait([task])
            await proxy.close()
            self.access.clusters.pop(name, None)


@dataclass
class Agent:
    """An agent that runs."""

    uid: str
    link: AgentLink
    inventory: Inventory
    task: asyncio.Task[None]


def kubeconfig(path: Path, server: str, token: str = "agents-own-token", ca: Path | None = None) -> Path:  # noqa: S107 -- a test's
    """A kubeconfig file."""
    authority = f"\n    certificate-authority: {ca}" if ca else ""
    path.write_text(
        f"""apiVersion: v1
kind: Config
current-context: it
clusters:
- name: it
  cluster:
    server: {server}{authority}
users:
- name: it
  user:
    token: {token}
contexts:
- name: it
  context:
    cluster: it
    user: it
"""
    )
    path.chmod(0o600)
    return path
