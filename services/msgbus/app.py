"""Builds msgbus, in order."""

from __future__ import annotations

from prometheus_client import Gauge

from kubegems.messages.v1 import message_service_pb2
from libs import audit, rpc
from libs.audit import Auditor, PgUnits
from libs.bus import Bus
from libs.crypt.box import Box
from libs.pg import Database
from libs.rpc import metrics
from libs.rpc.context import CallerContexts
from libs.rpc.server import MAX_METADATA
from libs.run import Life
from services.msgbus.api import Messages
from services.msgbus.clients import Gateway
from services.msgbus.config import Config
from services.msgbus.consumers import Consumers
from services.msgbus.hub import Hub
from services.msgbus.view import View

_SUBSCRIBERS = Gauge("kubegems_msgbus_subscribers", "Open subscriptions.")


async def start(config: Config, life: Life) -> None:
    """Starts listening, then serves."""
    host, _, port = config.metrics_address.rpartition(":")
    life.stack.callback(metrics.serve(host, int(port)))
    tls = rpc.Tls(config.certificate_file, config.key_file, config.ca_file)
    database = await Database.connect(config.database_url_file.read_text().strip(), application_name="msgbus", max_size=4)
    life.stack.push_async_callback(database.close)
    await audit.prepare(database)
    auditor = Auditor(database, "msgbus")
    life.spawn("auditor", auditor.run())
    files = (config.certificate_file, config.key_file, config.ca_file)
    bus = await Bus.connect(config.nats_url, name="msgbus", tls=files, nkey_seed_file=config.nats_seed_file)
    life.stack.push_async_callback(bus.close)
    channel = rpc.Channel(config.gateway_address, "gateway", tls)
    life.stack.push_async_callback(channel.close)
    gateway = Gateway(channel)
    hub = Hub(View())
    _SUBSCRIBERS.set_function(lambda: len(hub))
    Consumers(bus, hub, gateway.clusters, life).start()
    box = Box.load(config.resume_key_file)
    messages = Messages(hub, gateway.grants, box, queue_size=config.queue_size, streams_per_user=config.streams_per_user)
    service = message_service_pb2.DESCRIPTOR.services_by_name["MessageService"]
    pipeline = rpc.Pipeline(
        rpc.methods(service, messages),
        authenticate=CallerContexts("msgbus", gateway.caller_keys),
        authorise=decided,
        units=PgUnits(database, auditor, key=config.resume_key_file.read_bytes()),
        audit=auditor,
    )
    server = rpc.Server(pipeline, max_metadata=MAX_METADATA)
    server.listen(config.grpc_address, tls, require_client=True)
    await server.start()
    life.on_drain.append(lambda: server.drain(2.0))


async def decided(call: rpc.Call, request: object) -> None:
    """The gateway has decided already; its signed context is the proof."""
