"""Builds the gateway, in order: what domains stand on, the domains, the listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from libs import rpc
from libs.audit import Auditor, PgUnits
from libs.bus import Bus
from libs.clock import SystemClock
from libs.crypt.box import Box
from libs.crypt.ca import Authority
from libs.pg import Database
from libs.pg.paging import Pages
from libs.rest import Api, HttpServer
from libs.rpc import Pipeline, Server, metrics
from libs.rpc.call import Method
from libs.run import Life
from libs.tunnel.tcp import server_tls
from services.gateway import wiring
from services.gateway.broker import Streams
from services.gateway.config import Config
from services.gateway.edge import bounds, docs
from services.gateway.edge.enrolment_http import EnrolmentHttp
from services.gateway.edge.messages_socket import MessagesSocket
from services.gateway.edge.probes import Probes
from services.gateway.identity.app import Identity
from services.gateway.identity.keys import jwks
from services.gateway.link.kubernetes_edge import KubernetesEdge
from services.gateway.link.links import Links
from services.gateway.link.socket import TunnelSocket
from services.gateway.wiring import Base

_EDGE_SECONDS = 4.0  # for requests under way when the gateway stops; less than the HTTP server's own 5 s
_LINK_SECONDS = 3.0  # for what other gateways forwarded here, after all that


async def start(config: Config, life: Life) -> None:
    """Starts the gateway; returns when every listener serves."""
    host, port = _split(config.metrics_address)
    life.stack.callback(metrics.serve(host, port))
    base = await _base(config, life)
    await wiring.migrated(base.database)
    life.spawn("auditor", base.auditor.run())
    life.stack.push_async_callback(base.auditor.close)
    identity = await wiring.identity(base)
    nats = wiring.nats_auth(base)
    streams = Streams(base.bus, base.database, put_out=nats.revoke)
    links = await wiring.links(base, streams)
    methods = [
        *wiring.identity_methods(identity),
        *wiring.tenancy_methods(base),
        *wiring.audit_methods(base),
        *wiring.fleet_methods(base, identity, links, nats),
        *wiring.forwarded_methods(base, identity),
    ]
    edge = wiring.kubernetes_edge(base, identity, links)
    for name, work in (
        ("nats auth", nats.run()),
        ("streams", streams.run()),
        ("health", wiring.health(base, links, streams, nats).run()),
        ("relay", wiring.relay(base).run()),
        ("hints", wiring.hints(base, links).run()),
        ("kubernetes edge", edge.run()),
    ):
        life.spawn(name, work)
    await _listen(base, identity, methods, links, edge)


async def _base(config: Config, life: Life) -> Base:
    clock = SystemClock()
    dsn = config.database_url_file.read_text().strip()
    database = await Database.connect(dsn, application_name="gateway", max_size=config.database_connections)
    life.stack.push_async_callback(database.close)
    files = (config.certificate_file, config.key_file, config.ca_file)
    bus = await Bus.connect(config.nats_url, name="gateway", tls=files, nkey_seed_file=config.nats_seed_file)
    life.stack.push_async_callback(bus.close)
    auditor = Auditor(database, "gateway")
    key = config.master_key_file.read_bytes()
    return Base(
        config=config,
        life=life,
        clock=clock,
        database=database,
        auditor=auditor,
        units=PgUnits(database, auditor, key=key),
        bus=bus,
        pages=Pages(key),
        box=Box.load(config.master_key_file),
        authority=Authority.load(config.ca_file, config.ca_key_file),
        tls=rpc.Tls(*files),
        limits=bounds.limits(config, clock),
    )


async def _listen(base: Base, identity: Identity, methods: list[Method], links: Links, edge: KubernetesEdge) -> None:
    config, life, tls = base.config, base.life, base.tls
    pipeline = Pipeline(
        methods, authenticate=identity.authenticator.authenticate, limiter=base.limits, units=base.units, audit=base.auditor
    )
    probes = Probes({"database": base.database.ping}, {"nats": lambda: base.bus.connected}, lambda: jwks(identity.access_keys))
    http = HttpServer(Api(pipeline, cors=bounds.cors(config), limit=base.limits.of_address), guard=bounds.guard(config))
    probes.mount(http)
    EnrolmentHttp(pipeline, base.authority.bundle).mount(http)
    docs.mount(http, methods, config.viewer_folder)
    http.add_raw_route("/k8s/{path:.*}", edge.handle)
    tunnels = TunnelSocket(links, base.authority.bundle, base.clock, limit=base.limits.of_address)
    http.add_raw_route("/tunnel", tunnels.handle, "GET")
    origins = (config.public_url, *config.cors_origins.split(","))
    socket = MessagesSocket(pipeline, identity.authenticator.authenticate, origins, base.limits)
    http.add_raw_route("/ws/messages", socket.handle, "GET")
    https, tunnel = tls.context(), server_tls(config.certificate_file, config.key_file, config.ca_file)
    life.spawn("certificates", tls.keep_fresh(https, tunnel))
    inner = Server(pipeline, rpc.for_services(methods), max_concurrent=20_000, per_connection=10_000, for_hub=True)  # grants of all
    internal = await _serve(inner, config.internal_address, tls, require_client=True)
    proxies = bounds.proxies(config)
    enrolment = await _serve(Server(pipeline, rpc.for_enrolment(methods), proxies=proxies), config.enrolment_address, tls)
    public = await _serve(Server(pipeline, rpc.public(methods), proxies=proxies), config.grpc_address, tls)
    await links.serve(*_split(config.tunnel_address), tunnel)
    await http.start(*_split(config.rest_address), https)
    life.on_drain += [
        probes.drain,
        links.go_away,
        lambda: _drain(http.drain(), edge.drain(_EDGE_SECONDS), public.drain(5.0), enrolment.drain(5.0)),
        lambda: internal.drain(2.0),
        lambda: links.drain(_LINK_SECONDS),
    ]


async def _drain(*steps: Coroutine[Any, Any, None]) -> None:
    """People first, the hub's own services last: they are needed to answer people."""
    await asyncio.gather(*steps)


async def _serve(server: Server, address: str, tls: rpc.Tls, *, require_client: bool = False) -> Server:
    server.listen(address, tls, require_client=require_client)
    await server.start()
    return server


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
