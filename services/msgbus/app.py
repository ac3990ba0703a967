"""Builds msgbus, in order."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

from prometheus_client import Gauge

from kubegems.messages.v1 import announcement_service_pb2, inbox_service_pb2, message_service_pb2
from libs import audit, rpc
from libs.audit import Auditor, PgUnits
from libs.bus import Bus
from libs.bus.relay import Relay
from libs.clock import SystemClock, new_id
from libs.crypt.box import Box
from libs.faults import Fault
from libs.pg import Database, migrate
from libs.pg.paging import Pages
from libs.rpc import metrics
from libs.rpc.context import CallerContexts
from libs.rpc.server import MAX_METADATA
from libs.run import Life
from services.msgbus.api import Messages
from services.msgbus.bodies import Bodies
from services.msgbus.clients import Gateway, Rights
from services.msgbus.config import Config
from services.msgbus.consumers import Consumers
from services.msgbus.hub import Hub
from services.msgbus.inbox_api import AnnouncementService, InboxService
from services.msgbus.inbox_store import SCHEMA
from services.msgbus.interest import Interest
from services.msgbus.peers import Peers
from services.msgbus.post import Post
from services.msgbus.view import View

CATCH_UP_SECONDS = 8.0
GC = (50_000, 20, 50)  # events make much garbage and hardly any cycles: thousands of streams need not be walked for it
MOST_CALLS = 20_000  # streams and other calls at once, all connections together
_SUBSCRIBERS = Gauge("kubegems_msgbus_subscribers", "Open subscriptions.")
_WAITING = Gauge("kubegems_msgbus_queue_events", "Events that wait for subscribers, in all and in the longest queue.", ["queue"])


async def start(config: Config, life: Life) -> None:
    """Starts listening, then serves once the clusters' streams are read to their end."""
    host, _, port = config.metrics_address.rpartition(":")
    life.stack.callback(metrics.serve(host, int(port)))
    tls = rpc.Tls(config.certificate_file, config.key_file, config.ca_file)
    database = await Database.connect(config.database_url_file.read_text().strip(), application_name="msgbus", max_size=6)
    life.stack.push_async_callback(database.close)
    await audit.prepare(database)
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")
    auditor = Auditor(database, "msgbus")
    life.spawn("auditor", auditor.run())
    files = (config.certificate_file, config.key_file, config.ca_file)
    bus = await Bus.connect(config.nats_url, name="msgbus", tls=files, nkey_seed_file=config.nats_seed_file)
    life.stack.push_async_callback(bus.close)
    channel = rpc.Channel(config.gateway_address, "gateway", tls)
    life.stack.push_async_callback(channel.close)
    gateway = Gateway(channel)
    rights = Rights(lambda: rpc.Channel(config.gateway_address, "gateway", tls, spread=False))
    hub = Hub(View())
    _measure(hub)
    consumers = Consumers(bus, hub, gateway.clusters, life)
    consumers.start()
    pipeline = _pipeline(config, database, auditor, gateway, _messages(config, life, bus, hub, gateway, rights))
    _post(config, life, database, bus)
    server = rpc.Server(pipeline, max_metadata=MAX_METADATA, max_concurrent=MOST_CALLS, per_connection=MOST_CALLS, for_hub=True)
    server.listen(config.grpc_address, tls, require_client=True)
    await consumers.caught_up(CATCH_UP_SECONDS)
    await server.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC)
    life.on_drain.append(lambda: server.drain(2.0))


def _measure(hub: Hub) -> None:
    _SUBSCRIBERS.set_function(lambda: len(hub))
    _WAITING.labels("all").set_function(lambda: hub.waiting()[0])
    _WAITING.labels("longest").set_function(lambda: hub.waiting()[1])


def _messages(  # noqa: PLR0917 -- what it is built of
    config: Config, life: Life, bus: Bus, hub: Hub, gateway: Gateway, grants: Rights
) -> Messages:
    """Live streams, with what they need of other replicas and of agents."""
    peers = Peers(bus, new_id().hex)
    made = Messages(
        hub, grants, Box.load(config.resume_key_file), queue_size=config.queue_size, streams_per_user=config.streams_per_user,
        bodies=Bodies(gateway.kubernetes), peers=peers,
    )  # fmt: skip
    interest = Interest(hub, bus, gateway.interest, peers.replica)

    async def withdraw() -> None:
        with contextlib.suppress(Fault):
            await interest.withdraw()

    life.spawn("peers", peers.serve(made.update))
    life.spawn("interest", interest.run())
    life.on_drain.append(withdraw)
    return made


def _post(config: Config, life: Life, database: Database, bus: Bus) -> None:
    """Inboxes are filled, and what they hold is told."""
    post = Post(bus, database, retention_days=config.retention_days)
    life.spawn("post", post.run())
    life.spawn("announcements", post.announce())
    life.spawn("relay", Relay(database, bus, (SCHEMA,)).run())


def _pipeline(config: Config, database: Database, auditor: Auditor, gateway: Gateway, messages: Messages) -> rpc.Pipeline:
    key = config.resume_key_file.read_bytes()
    pages = Pages(key)
    served = (
        (message_service_pb2, messages),
        (inbox_service_pb2, InboxService(pages, gateway.audiences)),
        (announcement_service_pb2, AnnouncementService(pages, gateway.audiences, SystemClock())),
    )
    methods = [m for module, servicer in served for s in module.DESCRIPTOR.services_by_name.values() for m in rpc.methods(s, servicer)]
    return rpc.Pipeline(
        methods,
        authenticate=CallerContexts("msgbus", gateway.caller_keys),
        authorise=decided,
        units=PgUnits(database, auditor, key=key),
        audit=auditor,
    )


async def decided(call: rpc.Call, request: object) -> None:
    """The gateway has decided already; its signed context is the proof."""
