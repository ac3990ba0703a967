"""Chaos of push: all parts killed by SIGKILL, the broker's tail lost, messages doubled and late, rights and environments that change.

Each view ends as the cluster's list, with RESYNC where something was dropped, and nobody ever sees what it may not.
3,000 changes by default, seeded; `KUBEGEMS_CHAOS_CHANGES=100000` (`make chaos`) for a night. The seed is printed:
`KUBEGEMS_CHAOS_SEED` repeats it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.bus import streams
from libs.faults import Fault
from libs.kube.resources import PODS
from tests.chaos.push.hub import ACME, BRIEF, GLOBEX, Hub, frozen, insist
from tests.chaos.push.hub import hub as built
from tests.chaos.push.watcher import Allowed, Watcher
from tests.integration.push.cluster import UID
from tests.kit.data import postgres_server

CHANGES = int(os.environ.get("KUBEGEMS_CHAOS_CHANGES", "3000"))
SEED = int(os.environ.get("KUBEGEMS_CHAOS_SEED", "20260101"))
RATE = float(os.environ.get("KUBEGEMS_CHAOS_RATE", "100"))  # changes a second
SECONDS = float(os.environ.get("KUBEGEMS_TEST_TIMESCALE", "1"))
CUT_SECONDS = 5.0  # of silence about rights; while all is well a second, which tests/integration/push keeps
pytestmark = pytest.mark.timeout(300 * SECONDS + CHANGES / 10)


@pytest.fixture(scope="module")
async def hub(tmp_path_factory: pytest.TempPathFactory, hub_certificates: Any, free_ports: Any) -> AsyncIterator[Hub]:
    """All of it, with a PostgreSQL of its own."""
    folder = tmp_path_factory.mktemp("chaos")
    folder.chmod(0o700)
    async with postgres_server(folder) as postgres, built(folder, hub_certificates, free_ports, postgres) as found:
        yield found


class Chaos:
    """Breaks one thing after another, each whole again before the next."""

    def __init__(self, hub: Hub, rng: random.Random, dev: Allowed) -> None:
        self._hub, self._rng, self._dev = hub, rng, dev
        self.done: Counter[str] = Counter()
        self._row = ""

    async def run(self) -> None:
        """For ever."""
        breaks = [
            *(self.replica, self.gateway, self.broker, self.tail, self.database, self.agent),
            *(self.late, self.doubled, self.rights, self.environment),
        ]
        while True:
            for what in self._rng.sample(breaks, len(breaks)):
                await self._moment(0.3, 1.5)
                self._hub.stands()
                await what()
                self.done[what.__name__] += 1

    async def _moment(self, least: float, most: float) -> None:
        await asyncio.sleep(self._rng.uniform(least, most))

    async def replica(self) -> None:
        """A replica of msgbus dies and comes back."""
        index = self._rng.randrange(2)
        await self._hub.kill_replica(index)
        await self._moment(0, 1)
        await self._hub.start_replica(index)

    async def gateway(self) -> None:
        """The gateway dies, and with it every stream and the word about rights."""
        await self._hub.gateway.kill()
        await self._moment(0, 2)
        await self._hub.gateway.start()

    async def broker(self) -> None:
        """NATS dies and comes back."""
        await self._hub.kill_nats()
        await self._moment(0, 1.5)
        await self._hub.start_nats()

    async def tail(self) -> None:
        """NATS dies and comes back without the last second or two."""
        try:
            kept = self._hub.keep_store()
        except OSError:
            return  # a file went while it was copied
        await self._moment(0.2, 2)
        await self._hub.kill_nats()
        self._hub.restore(kept)
        await self._hub.start_nats()

    async def database(self) -> None:
        """PostgreSQL dies, for longer than its answers are believed at times."""
        await self._hub.kill_postgres()
        await self._moment(0, 4)
        await self._hub.start_postgres()

    async def agent(self) -> None:
        """The agent dies; the cluster goes on without it for a while."""
        await self._hub.cluster.kill()
        await self._moment(0, 1)
        self._hub.cluster.start()
        await self._hub.cluster.observe(PODS)

    async def late(self) -> None:
        """A broker, or a replica, that stands still for a while has much to say at once."""
        with frozen(self._rng.choice([self._hub.nats_process, *self._hub.replicas])):
            await self._moment(0.5, 3)

    async def doubled(self) -> None:
        """Old messages come again, late and under new sequences."""
        with contextlib.suppress(Fault, TimeoutError):
            async with asyncio.timeout(3):
                count = 0
                async for received in self._hub.bus.follow(streams.cluster(UID).name, after=0):
                    if not received.gap and self._rng.random() < 0.2:
                        await self._hub.bus.publish_bytes(received.subject, received.data, type_=received.type_name)
                        count += 1
                    if count == 40:
                        return

    async def rights(self) -> None:
        """`dev` gets another tenant's environment, and loses it a moment later."""
        member = "/tenants/globex/projects/shop/environments/dev/members/dev"
        self._dev.until[GLOBEX] = float("inf")
        await self._hub.insist("PUT", member, {"role": "READER"})
        await self._moment(0.2, 1.5)
        await self._hub.insist("DELETE", member, missing=True)
        self._dev.until[GLOBEX] = time.time() + CUT_SECONDS * SECONDS

    async def environment(self) -> None:
        """An environment's row goes before its objects do, and comes back."""
        self._row = await insist(lambda: self._hub.sql("SELECT to_jsonb(e)::text FROM tenancy.environments e WHERE name = 'brief'"))
        await insist(lambda: self._hub.sql("DELETE FROM tenancy.environments WHERE name = 'brief'"))
        await self._moment(0.2, 1)
        for i in range(0, 30, 3):
            await self._hub.cluster.delete(BRIEF, f"p{i}")
        await self._moment(0.2, 2)
        await self.put_back()

    async def put_back(self) -> None:
        """The environment is there again, if it was taken away."""
        again = "INSERT INTO tenancy.environments SELECT * FROM jsonb_populate_record(NULL::tenancy.environments, $1::text::jsonb)"
        if self._row:
            await insist(lambda: self._hub.sql(again + " ON CONFLICT DO NOTHING", self._row))


async def test_every_view_ends_as_the_clusters_list(hub: Hub, eventually: Any) -> None:
    """Whatever was killed: each view equals the list, RESYNC came where events were dropped, nobody ever saw what it may not."""
    rng = random.Random(SEED)
    print(f"seed {SEED}, {CHANGES} changes")
    started = time.monotonic()
    may = Allowed(always=frozenset({ACME}))
    admins = [Watcher(hub, "admin") for _ in range(3)]
    scoped = Watcher(hub, "admin", query="&scopes=tenants/acme", allowed=Allowed(always=frozenset({ACME, BRIEF})))
    dev, eve = Watcher(hub, "dev", allowed=may), Watcher(hub, "eve", allowed=Allowed(always=frozenset({GLOBEX})))
    everyone = [*admins, scoped, dev, eve]
    chaos = Chaos(hub, rng, may)
    async with watching(*everyone):
        breaking = asyncio.create_task(chaos.run(), name="chaos")
        await hub.cluster.churn(rng, CHANGES, (ACME, GLOBEX, BRIEF), every=1 / RATE)
        await _ended(breaking, hub)
        await chaos.put_back()
        for watcher, namespaces in ((dev, (ACME,)), (eve, (GLOBEX,)), (scoped, (ACME, BRIEF)), *((a, ()) for a in admins)):
            await _same(hub, watcher, namespaces, eventually)
    print(f"{time.monotonic() - started:.0f} s; broken {chaos.done.total()} times: {dict(sorted(chaos.done.items()))}")
    print(f"streams broken {sum(w.breaks for w in everyone)}, resumed {sum(w.resumed for w in everyone)}")
    print(f"events {sum(w.events for w in everyone)}")
    print(f"RESYNC: {dict(sum((w.resyncs for w in everyone), Counter()))}; SCOPE_REVOKED: {sum(w.revoked for w in everyone)}")
    assert [w.foreign for w in everyone] == [[]] * len(everyone), "nobody saw what it may not"
    assert len(chaos.done) >= 8, "the control: there was chaos"


@contextlib.asynccontextmanager
async def watching(*watchers: Watcher) -> AsyncIterator[None]:
    """Runs subscribers for the length of a block."""
    tasks = [asyncio.create_task(w.run(), name=f"watcher {w.username}") for w in watchers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError), ended


async def _ended(breaking: asyncio.Task[None], hub: Hub) -> None:
    """Lets the chaos end and puts everything right once more."""
    if breaking.done():
        breaking.result()
    breaking.cancel()
    await asyncio.gather(breaking, return_exceptions=True)
    await hub.whole()
    await hub.insist("DELETE", "/tenants/globex/projects/shop/environments/dev/members/dev", missing=True)


async def _same(hub: Hub, watcher: Watcher, namespaces: tuple[str, ...], eventually: Any) -> None:
    def check() -> None:
        listed, found = hub.cluster.listed(PODS, *namespaces), watcher.versions
        assert found == listed, f"{watcher.username}{watcher.query}: {set(found.items()) ^ set(listed.items())}"

    await eventually(check, within=60, every=0.2, what=f"view of {watcher.username}{watcher.query} = list")
