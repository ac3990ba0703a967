"""msgbus behind two gateways: whichever is lost or stands still, streams through the other one go on, and end when they must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress

import aiohttp
import pytest

from services.msgbus.grants import SILENCE_SECONDS
from tests.integration.replicas.hub import Hub
from tests.kit.eventually import eventually, timescale
from tests.kit.gateway import PASSWORD
from tests.kit.rest import User

WITHIN = 10.0  # seconds that losing a replica may take
Lose = Callable[[Hub, int], Awaitable[None]]


async def _kill(hub: Hub, gateway: int) -> None:
    await hub.gateways[gateway].kill()


async def _freeze(hub: Hub, gateway: int) -> None:
    hub.gateways[gateway].pause()


@asynccontextmanager
async def _subscribed(user: User, kind: str) -> AsyncIterator[asyncio.Task[None]]:
    """A subscription that has begun; the task ends with it."""
    begun = asyncio.Event()

    async def read() -> None:
        with suppress(aiohttp.ClientError, AssertionError):  # it was broken off, or ended with an error
            async with aclosing(user.events(f"/messages:subscribe?snapshot=true&resources={kind}")) as events:
                async for event in events:
                    if event["kind"] == "SNAPSHOT_END":
                        begun.set()

    task = asyncio.create_task(read(), name=f"subscription to {kind}")
    try:
        async with asyncio.timeout(WITHIN * timescale()):
            await begun.wait()
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.parametrize("lose", [_kill, _freeze])
async def test_streams_go_on_and_their_rights_and_kinds_stay_true(hub: Hub, lose: Lose) -> None:
    """A stream that was open outlives the silence allowed; a new one begins; a sign-out ends it within a second; a kind is asked for.

    msgbus watches rights at one of the gateways, whichever: losing the first and then the second loses that one.
    """
    for lost in (0, 1):
        await _lost(hub, lost, lose)
        await hub.whole()


async def _lost(hub: Hub, lost: int, lose: Lose) -> None:
    there = hub.admins[1 - lost]
    guest = await there.sign_in("admin", PASSWORD)
    async with _subscribed(there, "pods") as kept, _subscribed(guest, "leases.coordination.k8s.io") as signed_out:
        await eventually(lambda: _wanted(hub, "leases..coordination.k8s.io"), within=5)
        await lose(hub, lost)
        try:
            done, _ = await asyncio.wait({kept, signed_out}, timeout=(SILENCE_SECONDS + 3) * timescale())
            assert not done, f"{[task.get_name() for task in done]} ended with the other gateway"
            async with _subscribed(guest, "configmaps"):
                await eventually(lambda: _wanted(hub, "configmaps.."), within=WITHIN, what="a kind was asked for")
            newest = (await there.get("/users/admin/sessions"))["sessions"][0]
            await there.delete(f"/{newest['name']}")
            done, _ = await asyncio.wait({kept, signed_out}, timeout=1.5 * timescale(), return_when=asyncio.FIRST_COMPLETED)
            assert done == {signed_out}
        finally:
            if hub.gateways[lost].running:
                hub.gateways[lost].resume()


async def _wanted(hub: Hub, kind: str) -> bool:
    rows = await hub.sql("SELECT DISTINCT unnest(resources) AS kind FROM fleet.interest WHERE expires > now()")
    return kind in {row["kind"] for row in rows}
