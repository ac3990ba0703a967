"""The follower's loop over hours, the order in which it applies, and an agent that is killed in the middle of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from libs.clock import HeldClock
from libs.kube import KubeClient, Resource
from libs.kube.resources import TENANTS
from services.agent.desired import domain
from services.agent.desired.applier import Applier
from services.agent.desired.domain import DesiredSet, Wanted
from services.agent.tests.test_desired import Hub, follower, hub, names
from tests.kit.eventually import timescale

__all__ = ["hub"]
HOUR = 3600.0


@pytest.mark.cluster
async def test_an_hour_without_the_hub_passes_in_the_loop(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """It asks at least once a minute, puts drift right, removes nothing, and has the newest set within a minute of the hub's return."""
    clock, over = HeldClock(), asyncio.Event()
    pauses: list[float] = []

    @asynccontextmanager
    async def passing(seconds: float) -> AsyncIterator[None]:
        """A pause of the loop: passes at once on the held clock."""
        pauses.append(seconds)
        if found.applied_generation == 2:
            over.set()
            await asyncio.Event().wait()
        assert await names(kube, hub) == {1, 2, 3}
        if len(pauses) == 1:
            hub.online = False
            hub.want(2, 3, 4)
            hub.bury(1)
        clock.advance(timedelta(seconds=seconds))
        hub.online = clock.monotonic() >= HOUR
        if len(pauses) % 20 == 2:
            await kube.delete(TENANTS, hub.name(1))
        raise TimeoutError
        yield

    hub.want(1, 2, 3)
    found = follower(hub, kube, tmp_path, patience=passing)
    loop, ended = asyncio.create_task(found.run()), asyncio.create_task(over.wait())
    try:
        async with asyncio.timeout(60 * timescale()):
            await asyncio.wait({loop, ended}, return_when=asyncio.FIRST_COMPLETED)
        assert not loop.done() or loop.result()
    finally:
        loop.cancel()
        ended.cancel()
        await asyncio.wait({loop, ended})
    assert await names(kube, hub) == {2, 3, 4}
    away = pauses[1:-1]
    assert len(away) >= HOUR / 60 - 2
    assert max(away) <= 60
    assert clock.monotonic() < HOUR + 60


class Slow:
    """A cluster that holds nothing, takes a while for each write, and keeps what began and ended in which order."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.open: list[str] = []

    async def list(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        nothing: list[Any] = []
        for found in nothing:
            yield found

    async def apply(self, resource: Resource, body: dict[str, Any], **_: Any) -> None:
        assert set(self.open) <= {resource.kind}, "a kind began before the one before it was through"
        self.began.append(resource.kind)
        self.open.append(resource.kind)
        for _turn in range(3):
            await asyncio.sleep(0)
        self.open.remove(resource.kind)


async def test_tenants_are_applied_before_environments() -> None:
    """All of a kind are through before the first of the next kind begins, in the hub's order of kinds."""
    cluster = Slow()
    kinds = ("Tenant", "TenantResourceQuota", "TenantNetworkPolicy", "Environment")
    wanted = tuple(Wanted(kind, f"a-{i}", f"{kind}-{i}", 1, {"spec": {}}) for kind in kinds for i in range(20))
    outcome = await Applier(cast("KubeClient", cluster)).bring(DesiredSet("hub", 1, "", wanted))
    assert (outcome.written, outcome.failures) == (80, {})
    assert cluster.began == [kind for kind in kinds for _ in range(20)]


@pytest.mark.cluster
@pytest.mark.parametrize("kill", [("apply", 1), ("apply", 7), ("patch", 1), ("delete", 1), ("delete", 2)], ids=str)
async def test_an_agent_killed_in_a_batch_ends_the_same(
    kill: tuple[str, int], kube: KubeClient, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it makes, marks or removes: nothing is told as applied, and the next one ends where an unharmed one does."""
    hub.want(1, 2, 3)
    await follower(hub, kube, tmp_path).sync()
    hub.want(3, *range(4, 16))
    hub.bury(1, 2)
    killed = follower(hub, kube, tmp_path)
    with monkeypatch.context() as patched:
        working = asyncio.create_task(killed.sync())
        _kill_after(patched, kube, *kill, working)
        with suppress(asyncio.CancelledError):
            await working
        assert working.cancelled()
    assert killed.applied_generation == 1
    again = follower(hub, kube, tmp_path)
    assert await again.sync()
    assert (await names(kube, hub), again.applied_generation) == ({3, *range(4, 16)}, 2)
    for number in (3, *range(4, 16)):
        annotations = (await kube.get(TENANTS, hub.name(number)))["metadata"]["annotations"]
        assert (annotations[domain.UID], annotations[domain.GENERATION]) == (f"row-{number}", "2")
    assert await again.sync()
    assert again.outcome.written == 0


def _kill_after(patched: pytest.MonkeyPatch, kube: KubeClient, what: str, after: int, working: asyncio.Task[bool]) -> None:
    """Cancels the work once so many writes of that sort were made, before it hears of the last."""
    real, made = getattr(kube, what), 0

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal made
        result = await real(*args, **options)
        made += 1
        if made == after:
            working.cancel()
            await asyncio.Event().wait()
        return result

    patched.setattr(kube, what, counted)
