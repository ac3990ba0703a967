"""Builds the worker, in order."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from kubegems.jobs.v1 import job_service_pb2, queue_service_pb2, schedule_service_pb2
from libs import audit, jobs, rpc
from libs.audit import Auditor, PgUnits
from libs.bus import Bus
from libs.bus.relay import Relay
from libs.jobs import tickets
from libs.jobs.clockwork import Clockwork
from libs.jobs.dispatch import Dispatcher
from libs.jobs.runner import Runner, collect_seldom
from libs.pg import Database
from libs.pg.paging import Pages
from libs.rpc import metrics
from libs.rpc.context import CallerContexts
from libs.rpc.server import MAX_METADATA
from libs.run import Life
from services.worker import platform_jobs, store
from services.worker.api import Jobs, Queues
from services.worker.clients import Gateway
from services.worker.config import Config
from services.worker.jobs import INVENTORY, kinds
from services.worker.platform_jobs import PlatformJobs
from services.worker.schedules_api import Schedules


async def start(config: Config, life: Life) -> None:
    """Starts dispatching and running jobs, then serves."""
    host, _, port = config.metrics_address.rpartition(":")
    life.stack.callback(metrics.serve(host, int(port)))
    tls = rpc.Tls(config.certificate_file, config.key_file, config.ca_file)
    database = await Database.connect(config.database_url_file.read_text().strip(), application_name="worker")
    life.stack.push_async_callback(database.close)
    await audit.prepare(database)
    await jobs.prepare(database)
    await store.prepare(database)
    auditor = Auditor(database, "worker")
    life.spawn("auditor", auditor.run())
    files = (config.certificate_file, config.key_file, config.ca_file)
    bus = await Bus.connect(config.nats_url, name="worker", tls=files, nkey_seed_file=config.nats_seed_file)
    life.stack.push_async_callback(bus.close)
    channel = rpc.Channel(config.gateway_address, "gateway", tls)
    life.stack.push_async_callback(channel.close)
    gateway = Gateway(channel)
    platform = PlatformJobs(
        gateway, [config.certificate_file, config.ca_file], keep_samples=timedelta(days=config.keep_samples_days),
        keep_reads=timedelta(days=config.keep_reads_days),
    )  # fmt: skip
    known = jobs.kinds(*kinds(gateway, gateway.place), *platform.kinds())
    schedules = platform_jobs.schedules(platform, config, gateway.online_clusters, INVENTORY)
    clockwork = Clockwork(database, known, schedules)
    life.spawn("clockwork", clockwork.run())
    await _work(config=config, life=life, database=database, bus=bus, gateway=gateway, known=known)
    await _serve(config=config, life=life, database=database, gateway=gateway, auditor=auditor, known=known, clockwork=clockwork, tls=tls)


async def _serve(
    *, config: Config, life: Life, database: Database, gateway: Gateway, auditor: Auditor, known: jobs.Kinds, clockwork: Clockwork,
    tls: rpc.Tls,
) -> None:  # fmt: skip
    key = config.page_key_file.read_bytes()
    pages = Pages(key)
    served = [
        *rpc.methods(job_service_pb2.DESCRIPTOR.services_by_name["JobService"], Jobs(database, known, pages)),
        *rpc.methods(
            schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
            Schedules(known, clockwork, pages),
        ),
        *rpc.methods(queue_service_pb2.DESCRIPTOR.services_by_name["QueueService"], Queues(pages)),
    ]
    pipeline = rpc.Pipeline(
        served,
        authenticate=CallerContexts("worker", gateway.caller_keys),
        authorise=decided,
        units=PgUnits(database, auditor, key=key),
        audit=auditor,
    )
    server = rpc.Server(pipeline, max_metadata=MAX_METADATA, per_connection=2000, for_hub=True)
    server.listen(config.grpc_address, tls, require_client=True)
    await server.start()
    life.on_drain.append(lambda: server.drain(2.0))


async def _work(*, config: Config, life: Life, database: Database, bus: Bus, gateway: Gateway, known: jobs.Kinds) -> None:
    dispatcher = Dispatcher(database, bus, known, window=2 * config.concurrency, bundle=tickets.bundle(config.concurrency))
    runner = Runner(
        database, known, allowed=gateway.allowed, worker=f"{socket.gethostname()}/{os.getpid()}", concurrency=config.concurrency,
        on_claimed=dispatcher.claimed,
    )  # fmt: skip
    await database.listen(jobs.WAKE, dispatcher.wake)
    await database.listen(jobs.CANCEL, runner.cancelled)
    life.spawn("dispatcher", dispatcher.run())
    life.spawn("relay", Relay(database, bus, [jobs.SCHEMA]).run())
    life.spawn("runner", runner.run(bus))
    collect_seldom()
    life.on_drain.append(runner.drain)


async def decided(call: rpc.Call, request: object) -> None:
    """The gateway has decided already; its signed context is the proof."""
