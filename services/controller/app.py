"""Builds the controller, in order."""

from __future__ import annotations

import asyncio
import os
import socket

from prometheus_client import start_http_server

from libs.clock import SystemClock, new_id
from libs.kube import KubeClient
from libs.reconcile import Election
from libs.run import Life
from services.controller.config import Config
from services.controller.controller import Controller
from services.controller.health import HealthServer

_USER_AGENT = "kubegems-controller"
LEASE = "gems-controller"


async def start(config: Config, life: Life) -> None:
    """Starts serving health and metrics, and works when it leads."""
    health = HealthServer()
    await health.start(config.grpc_address)
    life.stack.push_async_callback(health.stop)
    life.on_drain.append(health.drain)
    host, _, port = config.metrics_address.rpartition(":")
    server, thread = start_http_server(int(port), addr=host)
    life.stack.callback(thread.join, 1.0)
    life.stack.callback(server.server_close)
    life.stack.callback(server.shutdown)
    client = await life.stack.enter_async_context(await _client(config))
    life.spawn("controller", lead(client, config, health))


async def lead(client: KubeClient, config: Config, health: HealthServer | None = None) -> None:
    """Waits to lead and works, until cancelled."""
    clock = SystemClock()
    identity = config.identity or f"{socket.gethostname()}-{os.getpid()}-{new_id().hex[-6:]}"
    election = Election(client, namespace=config.namespace, name=LEASE, identity=identity, clock=clock, duration=config.lease_seconds)

    async def work() -> None:
        synced = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            controller = Controller(client, config, clock=clock, identity=identity, on_synced=synced.set)
            group.create_task(_announced(synced, health), name="readiness")
            await controller.run()

    await election.run(work)


async def _announced(synced: asyncio.Event, health: HealthServer | None) -> None:
    """Says ready once all is seen, and no longer when the work stops."""
    if health is None:
        return
    await synced.wait()
    await health.set_ready(ready=True)
    try:
        await asyncio.Event().wait()
    finally:
        await health.set_ready(ready=False)


async def _client(config: Config) -> KubeClient:
    if config.kubeconfig_file:
        return await KubeClient.from_kubeconfig(config.kubeconfig_file, user_agent=_USER_AGENT)
    return await KubeClient.in_cluster(user_agent=_USER_AGENT)
