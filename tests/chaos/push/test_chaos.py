"""Chaos of push: replicas, agent and broker killed by SIGKILL, the broker's tail lost, messages doubled; the end is the list.

3,000 changes by default, seeded; `KUBEGEMS_CHAOS_CHANGES=100000` (`make chaos`) for a night. The seed is printed:
`KUBEGEMS_CHAOS_SEED` repeats it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.bus import streams
from libs.faults import Fault
from tests.integration.push.rig import ACME, GLOBEX, PODS, UID, Rig, Viewer
from tests.integration.push.rig import rig as built

CHANGES = int(os.environ.get("KUBEGEMS_CHAOS_CHANGES", "3000"))
SEED = int(os.environ.get("KUBEGEMS_CHAOS_SEED", "20260101"))
RATE = 100.0
pytestmark = pytest.mark.timeout(300 + CHANGES / 10)


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory, hub_certificates: Any, free_ports: Any, database: Any) -> AsyncIterator[Rig]:
    """Two replicas of msgbus and what is around them."""
    folder = tmp_path_factory.mktemp("chaos")
    folder.chmod(0o700)
    async with built(folder, hub_certificates, free_ports, database.dsn) as found:
        yield found


class Chaos:
    """Breaks one thing after another, each whole again before the next."""

    def __init__(self, rig: Rig, rng: random.Random, dev: Viewer) -> None:
        self._rig, self._rng, self._dev = rig, rng, dev
        self.done: list[str] = []

    async def run(self) -> None:
        """For ever."""
        breaks = [self.replica, self.broker, self.tail, self.agent, self.rights, self.doubled]
        while True:
            for what in self._rng.sample(breaks, len(breaks)):
                await asyncio.sleep(self._rng.uniform(0.3, 1.5))
                await what()
                self.done.append(what.__name__)

    async def replica(self) -> None:
        """A replica of msgbus dies and comes back."""
        index = self._rng.randrange(2)
        await self._rig.kill_replica(index)
        await asyncio.sleep(self._rng.uniform(0, 1))
        await self._rig.start_replica(index)

    async def broker(self) -> None:
        """NATS dies and comes back."""
        await self._rig.kill_nats()
        await asyncio.sleep(self._rng.uniform(0, 1.5))
        await self._rig.start_nats()

    async def tail(self) -> None:
        """NATS dies and comes back without the last second or two."""
        try:
            kept = self._rig.keep_store()
        except OSError:
            return  # a file went while it was copied
        await asyncio.sleep(self._rng.uniform(0.2, 2))
        await self._rig.kill_nats()
        self._rig.restore(kept)
        await self._rig.start_nats()

    async def agent(self) -> None:
        """The agent dies; the cluster goes on without it for a while."""
        await self._rig.cluster.kill()
        await asyncio.sleep(self._rng.uniform(0, 1))
        self._rig.cluster.start()
        await self._rig.cluster.observe(PODS)

    async def rights(self) -> None:
        """`dev` gets another environment, and loses the first a moment later."""
        self._dev.allowed = {"acme", "globex"}
        self._rig.hub.grant("dev", ACME, GLOBEX)
        await asyncio.sleep(0.5)
        self._rig.hub.grant("dev", ACME)
        await asyncio.sleep(1.0)  # within a second, says the promise
        self._dev.allowed = {"acme"}

    async def doubled(self) -> None:
        """Old messages come again, late and under new sequences."""
        with contextlib.suppress(Fault, TimeoutError):
            async with asyncio.timeout(3):
                count = 0
                async for received in self._rig.bus.follow(streams.cluster(UID).name, after=0):
                    if not received.gap and self._rng.random() < 0.2:
                        await self._rig.bus.publish_bytes(received.subject, received.data, type_=received.type_name)
                        count += 1
                    if count == 40:
                        return


async def test_every_view_ends_as_the_clusters_list(rig: Rig, eventually: Any) -> None:
    """Whatever was killed: each view equals the list, RESYNC came where events were dropped, nobody ever saw what it may not."""
    rng = random.Random(SEED)
    print(f"seed {SEED}, {CHANGES} changes")
    rig.hub.grant("admin", everything=True)
    rig.hub.grant("dev", ACME)
    rig.hub.grant("eve", GLOBEX)
    admins = [rig.viewer("admin") for _ in range(4)]
    dev, eve = rig.viewer("dev"), rig.viewer("eve")
    dev.allowed, eve.allowed = {"acme"}, {"globex"}
    async with rig.viewing(*admins, dev, eve):
        chaos = Chaos(rig, rng, dev)
        breaking = asyncio.create_task(chaos.run(), name="chaos")
        await rig.cluster.churn(rng, CHANGES, every=1 / RATE)
        await _ended(breaking, rig, dev)
        for viewer, namespaces in ((dev, ("acme",)), (eve, ("globex",)), *((admin, ()) for admin in admins)):
            await _same(rig, viewer, namespaces, eventually)
    print(f"broken: {len(chaos.done)} times: {sorted(set(chaos.done))}; breaks of streams {sum(v.breaks for v in admins)}")
    print(f"RESYNC: {sorted({reason for v in (*admins, dev, eve) for reason in v.resyncs})}")
    assert len(chaos.done) >= 6, "the control: there was chaos"
    assert (dev.foreign, eve.foreign) == ([], []), "nobody saw what it may not"


async def _ended(breaking: asyncio.Task[None], rig: Rig, dev: Viewer) -> None:
    """Lets the chaos end and puts everything right once more."""
    breaking.cancel()
    await asyncio.gather(breaking, return_exceptions=True)
    if rig.nats_process.code is not None:
        await rig.start_nats()
    for index, process in enumerate(rig.replicas):
        if process is None or process.code is not None:
            await rig.start_replica(index)
    if not rig.cluster.observation.kinds:
        rig.cluster.start()
        await rig.cluster.observe(PODS)
    rig.hub.grant("dev", ACME)
    dev.allowed = set()


async def _same(rig: Rig, viewer: Viewer, namespaces: tuple[str, ...], eventually: Any) -> None:
    def check() -> None:
        listed = rig.cluster.listed(PODS, *namespaces)
        assert viewer.view == listed, f"{viewer.user}: {set(viewer.view.items()) ^ set(listed.items())}"

    await eventually(check, within=60, every=0.2, what=f"view of {viewer.user} = list")
