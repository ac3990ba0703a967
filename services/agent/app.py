"""Wires the agent: the only place where its parts are made."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from kubegems.agent.v1 import inventory_service_pb2, preview_service_pb2
from kubegems.agent.v1.events_pb2 import InterestHint
from libs import log
from libs.bus import Bus, Received, subjects
from libs.clock import SystemClock, new_id
from libs.kube import KubeClient
from libs.kube.resources import NAMESPACES, OURS
from libs.rpc import metrics, registry
from libs.rpc.pipeline import Pipeline
from libs.rpc.server import Server
from libs.run import Life
from libs.tunnel.tcp import client_tls
from services.agent.broker_road import BROKER_NAME, BrokerRoad
from services.agent.cluster_state import ClusterState, lead
from services.agent.config import Config
from services.agent.desired.applier import Applier
from services.agent.desired.follower import Follower
from services.agent.desired.kept import Kept
from services.agent.desired.preview import Preview
from services.agent.enrolment import Enrolment
from services.agent.enrolment_roads import EdgeRoad
from services.agent.figures import Figures
from services.agent.identity import Identity, IdentityFiles
from services.agent.inventory_api import Inventory
from services.agent.link import HUB_NAME, AgentLink, Edge, Session, by_grant, principal_of
from services.agent.observed.interest import Interest
from services.agent.observed.kinds import BASE
from services.agent.observed.observation import Observation
from services.agent.observed.observer import Observer
from services.agent.observed.publisher import Publisher, Rate
from services.agent.policy import LocalPolicy
from services.agent.policy_watch import PolicyWatch
from services.agent.proxy import Proxy
from services.agent.renewal import Renewal
from services.agent.status import StatusReporter

VERSION = "0.1.0"
RELIST_SECONDS = 2.0  # least time between two lists that readers ask for
RELIST_PERIOD = 1200.0  # well within the hour that a cluster's stream remembers
_PREVIEW = preview_service_pb2.DESCRIPTOR.services_by_name["PreviewService"]
_INVENTORY = inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"]
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class _Ground:
    """What every part stands on."""

    config: Config
    life: Life
    client: KubeClient
    bus: Bus
    road: BrokerRoad | None
    identity: Identity
    renewal: Renewal
    state: ClusterState | None


async def start(config: Config, life: Life) -> None:
    """Joins if need be, then starts everything."""
    clock = SystemClock()
    life.stack.callback(metrics.serve(config.listen_address, config.metrics_port))
    client = await _client(config)
    life.stack.push_async_callback(client.close)
    servicer = Inventory(client, principal_of=principal_of, clock=clock)
    preview = Preview(principal_of=principal_of)
    pipeline = Pipeline([*registry.methods(_INVENTORY, servicer), *registry.methods(_PREVIEW, preview)], peers=by_grant)
    server = await _local_server(config, life, pipeline)

    state = await _state(config, life, client, server) if config.cluster_state else None
    files = IdentityFiles(config.state_dir)
    enrolment = _enrolment(config, files, state)
    renewal = Renewal(enrolment, files, clock=clock, token_file=config.join_token_file)
    identity = await renewal.ensure()
    life.spawn("certificate renewal", renewal.run())

    road = BrokerRoad() if config.one_port else None
    bus = await _bus(config, life, identity, road)
    await _work(_Ground(config, life, client, bus, road, identity, renewal, state), pipeline, preview, Figures(renewal))
    await server.serving()


async def _client(config: Config) -> KubeClient:
    if config.kubeconfig_file is not None:
        return await KubeClient.from_kubeconfig(config.kubeconfig_file, user_agent=f"kubegems-agent/{VERSION}")
    return await KubeClient.in_cluster(user_agent=f"kubegems-agent/{VERSION}")


async def _local_server(config: Config, life: Life, pipeline: Pipeline) -> Server:
    """Health and reflection, not ready yet; typed calls are refused here, since they come under no grant."""
    server = Server(pipeline)
    server.listen(f"{config.listen_address}:{config.grpc_port}", None)
    await server.start()
    await server.serving(ready=False)
    life.on_drain.append(server.drain)
    return server


async def _state(config: Config, life: Life, client: KubeClient, server: Server) -> ClusterState:
    """Leads, and has what an earlier pod left; until then this one stands by."""
    await server.serving()
    await lead(client, config.namespace, SystemClock(), life.spawn)
    await server.serving(ready=False)
    state = ClusterState(client, config.namespace, config.state_dir)
    await state.restore()
    life.spawn("state", state.run())
    return state


def _enrolment(config: Config, files: IdentityFiles, state: ClusterState | None) -> Enrolment:
    if config.one_port and not config.edge_url:
        raise ValueError("one_port needs edge_url, the one address that is reached")
    road = EdgeRoad(config.edge_url, config.ca_hash, config.edge_ca_file) if config.one_port else None
    saved = state.save_identity if state is not None else None
    return Enrolment(config.enrolment_address, config.ca_hash, files, version=VERSION, road=road, saved=saved)


async def _bus(config: Config, life: Life, identity: Identity, road: BrokerRoad | None) -> Bus:
    """The connection to NATS; with a road it comes about once the tunnel stands."""
    address = config.nats_address or identity.addresses.nats_address
    if road is not None:
        address = await road.start()
        life.stack.push_async_callback(road.close)
    bus = await Bus.connect(
        f"tls://{address}",
        name=f"agent {identity.addresses.cluster}",
        tls=(identity.certificate_file, identity.key_file, identity.ca_file),
        inbox_prefix=subjects.inbox(identity.addresses.cluster_uid),
        server_name=BROKER_NAME if road is not None else "",
        patience=5.0 if road is None else 0.0,
    )
    life.stack.push_async_callback(bus.close)
    return bus


async def _work(ground: _Ground, pipeline: Pipeline, preview: Preview, figures: Figures) -> None:
    life, config, uid = ground.life, ground.config, ground.identity.addresses.cluster_uid
    on_connect: list[Callable[[], None]] = []

    async def connected(_: Session) -> None:
        for tell in on_connect:
            tell()

    proxy = Proxy(ground.client.connection)
    life.stack.push_async_callback(proxy.close)
    policy = LocalPolicy(config.namespace)
    watching = PolicyWatch(ground.client, policy)
    link = _link(ground, pipeline, proxy, connected, policy)
    if ground.road is not None:
        ground.road.link = link
    applier = Applier(ground.client)
    follower = Follower(
        link, applier, Kept(config.state_dir / "desired", uid, on_change=ground.state.poke if ground.state is not None else None),
        resync_seconds=config.resync_seconds, accepted_hub_uid=config.accepted_hub_uid,
    )  # fmt: skip
    follower.on_trust, link.on_refused = ground.renewal.told, ground.renewal.refused
    ground.renewal.on_trust = link.reconnect
    observer = Observer(ground.client)
    observation = _observation(ground, observer)
    reporter = _reporter(link, follower, observer, watching)
    policy.listeners.add(reporter.poke)
    interest = Interest(link, ground.client, observation)
    on_connect += [follower.poke, reporter.connected, interest.poke]
    figures.of(link, follower)
    preview.of(link, applier, follower)

    life.spawn("local policy", watching.run())
    life.spawn("tunnel", link.run())
    life.spawn("desired state", follower.run())
    life.spawn("status", reporter.run())
    life.spawn("interest", interest.run())
    life.spawn("desired state hints", _on_hint(ground.bus.subscribe(subjects.desired(uid)), follower.poke))
    life.spawn("interest hints", _on_interest(ground.bus.subscribe(subjects.interest(uid)), interest, observation))
    life.spawn("relist", _relist(observation))
    life.spawn("watermarks", observation.publisher.watermarks(observation.watermark))


def _observation(ground: _Ground, observer: Observer) -> Observation:
    config = ground.config
    publisher = Publisher(
        ground.bus,
        cluster_uid=ground.identity.addresses.cluster_uid,
        rate=Rate(config.observe_rate),
        clock=SystemClock(),
        size=Rate(config.observe_bytes),
    )
    found = Observation(observer, publisher, spawn=ground.life.spawn, epoch=new_id().hex, limit=config.observe_pending)
    for kind in BASE:
        found.start(kind)
    return found


def _reporter(link: AgentLink, follower: Follower, observer: Observer, watching: PolicyWatch) -> StatusReporter:
    ours = {kind.kind: observer.reflectors[kind] for kind in OURS}
    reporter = StatusReporter(link, follower, ours, observer.reflectors[NAMESPACES], policy=watching.told)
    for kind in OURS:
        observer.listen(kind, reporter.on_change)
    observer.listen(NAMESPACES, reporter.on_namespace)
    follower.on_outcome = reporter.poke
    return reporter


def _link(
    ground: _Ground, pipeline: Pipeline, proxy: Proxy, connected: Callable[[Session], Awaitable[None]], policy: LocalPolicy
) -> AgentLink:
    identity = ground.identity
    return AgentLink(
        addresses=ground.config.tunnel_address or identity.addresses.tunnel_address,
        tls=lambda: client_tls(identity.certificate_file, identity.key_file, identity.ca_file),
        cluster_uid=identity.addresses.cluster_uid,
        version=VERSION,
        pipeline=pipeline,
        proxy=proxy,
        on_connect=connected,
        policy=policy,
        edge=_edge(ground.config, identity),
    )


def _edge(config: Config, identity: Identity) -> Edge | None:
    if not config.edge_url:
        return None
    authority = config.edge_ca_file or identity.ca_file
    return Edge(
        config.edge_url,
        lambda: ssl.create_default_context(cafile=str(authority)),
        lambda: (identity.certificate, identity.key),
        HUB_NAME if config.edge_ca_file is None else None,
    )


async def _on_hint(hints: AsyncGenerator[Received, None], poke: Callable[[str], None]) -> None:
    """Passes hints on, with their trace; a gap is one too, since what was missed may have been one."""
    async for received in hints:
        poke(received.traceparent)


async def _on_interest(hints: AsyncGenerator[Received, None], interest: Interest, observation: Observation) -> None:
    """Asks what is of interest now; lists afresh when a reader says that it missed something, at most every few seconds."""
    loop = asyncio.get_running_loop()
    listed = -math.inf
    async for received in hints:
        interest.poke(received.traceparent)
        with contextlib.suppress(ValueError, DecodeError):
            if received.parse(InterestHint).relist and loop.time() - listed >= RELIST_SECONDS:
                listed = loop.time()
                observation.relist()


async def _relist(observation: Observation) -> None:
    """Lists afresh now and then, so that a hub that lost everything is whole again although no hint came through."""
    while True:
        await asyncio.sleep(RELIST_PERIOD * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter
        observation.relist()
