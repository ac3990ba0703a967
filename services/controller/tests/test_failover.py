"""Two controllers: one works, the other takes over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.kube import KubeClient
from libs.kube.resources import LEASES, RESOURCE_QUOTAS
from services.controller import app
from services.controller.config import Config
from services.controller.health import HealthServer
from services.controller.tests.conftest import QUOTA, Story

pytestmark = pytest.mark.cluster


@contextlib.asynccontextmanager
async def running(account: KubeClient, identity: str, health: HealthServer | None = None) -> AsyncIterator[asyncio.Task[None]]:
    config = Config(identity=identity, lease_seconds=3, pod_cidrs=("10.99.0.0/16",))
    task = asyncio.create_task(app.lead(account, config, health), name=identity)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_second_takes_over_and_finishes_what_the_first_left(story: Story, account: KubeClient, kube: KubeClient) -> None:
    """One holder at a time; after the first stopped, drift is repaired by the second."""

    async def holder() -> str:
        return str((await kube.get(LEASES, "gems-controller", "kubegems-system"))["spec"]["holderIdentity"])

    await story.begin()
    async with running(account, "first") as first:
        name = await story.environment()
        await story.ready(name, within=10)
        async with running(account, "second"):
            await asyncio.sleep(1.5)  # several tries to take the lease
            assert await holder() == "first"
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            await kube.patch(RESOURCE_QUOTAS, "default", {"spec": {"hard": {"limits.cpu": "99"}}}, name)

            async def repaired() -> Any:
                return (await kube.get(RESOURCE_QUOTAS, "default", name))["spec"]["hard"] == QUOTA

            await story.wait(repaired, within=5, what="repair after fail-over")
            assert await holder() == "second"


async def test_health_says_whether_this_process_works(account: KubeClient, eventually: Any) -> None:
    """SERVING for the process always, for its work only while it leads and sees."""
    health = HealthServer()
    await health.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{health.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def works(service: str = "kubegems.controller") -> bool:
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

        assert not await works()
        assert await works("")
        async with running(account, "healthy", health):
            await eventually(works, within=10)
        assert not await works()
    await health.stop()
