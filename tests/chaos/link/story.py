"""The rounds: while users work, something breaks; then the oracle looks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.link.actions import STORES, Actions
from tests.chaos.link.rig import Rig
from tests.chaos.link.users import AWAY, REVIEW, REVIEWS, Asking, Person
from tests.e2e.world import World, world
from tests.kit.eventually import eventually, timescale

BACK_SECONDS = 60.0  # the longest pause between an agent's dials is 30 s
AGREE_SECONDS = 60.0
SHOP = "/tenants/initech/projects/shop/environments"
NAMESPACES = {"ivy": "initech-shop-dev", "eve": "globex-shop-dev"}
_UID = "gems.kubegems.io/uid"


@dataclass
class Story:
    """What was asked for, and what was seen.

    Attributes:
        wanted: CPU limit of each environment that was acknowledged, by name.
        told: one line per round.
        away: seconds until the cluster was back, by round.
        ended: seconds until the stream of a revoked right was over, by round.
    """

    rig: Rig
    world: World
    seed: str
    admin: Person
    rex: Person
    asking: list[Asking]
    wanted: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    away: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    async def run(self, rounds: int) -> None:
        """All rounds; raises AssertionError at the first that ends wrong."""
        actions = Actions(self.rig, self.seed)
        tasks = [asyncio.create_task(each.run(), name=f"asking {each.person.name}") for each in self.asking]
        try:
            for number in range(rounds):
                await self._round(number, actions)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for each in self.asking:
            assert each.seen["201"] >= rounds, f"the control: {each.person.name} was answered: {each.seen}"
            assert each.seen["other's 403"] >= rounds / 3, f"the control: {each.person.name} was refused: {each.seen}"

    async def _round(self, number: int, actions: Actions) -> None:
        rng = random.Random(f"{self.seed} round {number}")
        action, begun = actions.drawn(number), time.monotonic()
        agent = self.rig.platform.pid("agent")
        async with asyncio.TaskGroup() as group:
            changing = group.create_task(self._change(number, random.Random(f"{self.seed} changes {number}")), name="changes")
            revoking = group.create_task(self._revoke(number, action, rng.uniform(0, 4)), name="revocation")
            done = await actions.strike(action, rng)
            whole = time.monotonic()
            await self._online()
            self.away.append(time.monotonic() - whole)
            await asyncio.gather(changing, revoking)
        await self._agree()
        await eventually(self._one_holder, within=15, every=0.3)
        if action != "kill agent":
            assert self.rig.platform.pid("agent") == agent, f"the agent ended by itself after {done}"
        wrong = [line for each in self.asking for line in each.wrong]
        assert not wrong, "\n".join(wrong[:10]) + f"\nafter {done}"
        line = f"round {number}: {done}; back after {self.away[-1]:.1f} s; {self.ended[-1]:.2f} s to the end of a revoked stream"
        self.told.append(f"{line}; {time.monotonic() - begun:.0f} s")
        print(self.told[-1], flush=True)

    async def _one_holder(self) -> None:
        holders = await self.rig.holders()
        assert len(holders) == 1, f"the cluster's tunnel is at {holders}"

    async def _change(self, number: int, rng: random.Random) -> None:
        """Environments come, change and go, each change acknowledged."""
        await asyncio.sleep(rng.uniform(0, 2))
        name, cpu = f"r{number}", f"{rng.randint(1, 9)}00m"
        body = {"environmentId": name, "environment": {"cluster": "clusters/local", "quota": {"limits.cpu": cpu}}}
        await self.admin.insist("POST", SHOP, body, key=f"{self.seed} create {number}")
        self.wanted[name] = cpu
        older = sorted(set(self.wanted) - {name})
        if older:
            changed, cpu = rng.choice(older), f"{rng.randint(1, 9)}50m"
            await self.admin.insist("PATCH", f"{SHOP}/{changed}", {"quota": {"limits.cpu": cpu}}, key=f"{self.seed} change {number}")
            self.wanted[changed] = cpu
        if len(older) >= 4:
            gone = rng.choice(older)
            await self.admin.insist("DELETE", f"{SHOP}/{gone}", key=f"{self.seed} delete {number}")
            del self.wanted[gone]

    async def _revoke(self, number: int, action: str, after: float) -> None:
        """A right is given, a watch opened under it, and the right taken away: the watch is over in time."""
        member = f"{SHOP}/dev/members/rex"
        path = f"/k8s/clusters/local/api/v1/namespaces/{NAMESPACES['ivy']}/configmaps?watch=true"
        await self.admin.insist("PUT", member, {"role": "READER"})
        until = time.monotonic() + BACK_SECONDS * timescale()
        while True:
            started = asyncio.Event()
            watching = asyncio.create_task(self.rex.watch(path, started), name="rex's watch")
            opening = asyncio.create_task(started.wait())
            await asyncio.wait({watching, opening}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            opening.cancel()
            if started.is_set():
                break
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            assert time.monotonic() < until, "rex could not watch"
            await asyncio.sleep(0.3)
        await asyncio.sleep(after)
        await self.admin.insist("DELETE", member, key=f"{self.seed} revoke {number}")
        since, bound = time.monotonic(), 5.0 if action in STORES else 1.0
        done, _ = await asyncio.wait({watching}, timeout=60)
        if action == "hang" and self.rex.watching == self.rig.doors.stood_still:  # who stands still ends nothing, and passes nothing on
            since = max(since, self.rig.thawed)
        took = time.monotonic() - since
        assert done, "rex's watch goes on"
        assert took <= bound * timescale(), f"rex's watch went on for {took:.2f} s of {bound} s"
        with contextlib.suppress(*AWAY):
            watching.result()
        self.ended.append(took)

    async def _online(self) -> None:
        """The cluster shows ONLINE and answers."""

        async def check() -> None:
            try:
                status, shown = await self.admin.call("GET", "/api/v1/clusters/local")
                assert (status, shown.get("state")) == (200, "ONLINE"), shown
                status, answer = await self.admin.call("POST", REVIEWS, REVIEW)
                assert status == 201, answer
            except AWAY as error:
                raise AssertionError(repr(error)) from error

        await eventually(check, within=BACK_SECONDS, every=0.2)

    async def _agree(self) -> None:
        """Acknowledged writes = rows = objects, with the limits last asked for."""

        async def check() -> None:
            status, listed = await self.admin.call("GET", f"/api/v1{SHOP}?pageSize=500")
            assert status == 200, listed
            rows = {e["name"].rsplit("/", 1)[-1]: e for e in listed["environments"] if e["name"].rsplit("/", 1)[-1] != "dev"}
            limits = {name: row["quota"]["limits.cpu"] for name, row in rows.items()}
            assert limits == self.wanted, (limits, self.wanted)
            waiting = {name: row["state"] for name, row in rows.items() if row["state"] != "READY"}
            assert not waiting, waiting
            objects = (await self.world.cluster.json("get", "environments.gems.kubegems.io"))["items"]
            found = {o["metadata"]["annotations"][_UID]: _cpu(o) for o in objects if o["metadata"]["name"].startswith("initech-shop-r")}
            assert found == {row["uid"]: self.wanted[name] for name, row in rows.items()}, (found, rows)

        await eventually(check, within=AGREE_SECONDS, every=0.3)


def _cpu(environment: Any) -> str:
    spec = environment["spec"]
    return str(spec["resourceQuota"]["limits.cpu"])


@contextlib.asynccontextmanager
async def story(rig: Rig, home: Path, seed: str) -> AsyncIterator[Story]:
    """The world, its people, and what they will go through."""
    home.mkdir(mode=0o700)
    password = Path(rig.platform.endpoints["admin_password_file"]).read_text().strip()
    async with world(rig.platform.endpoints, home) as made:
        await made.admin.post("/users", {"userId": "rex", "user": {"displayName": "Rex"}, "initialPassword": "correct horse battery"})
        admin, rex = Person(made.nobody, rig.doors, "admin", password), Person(made.nobody, rig.doors, "rex", turn=1)
        asking = [await _asking(rig, made, name) for name in NAMESPACES]
        yield Story(rig, made, seed, admin, rex, asking)


async def _asking(rig: Rig, made: World, name: str) -> Asking:
    """A person with what he is sent as when all is well."""
    person = Person(made.nobody, rig.doors, name, uid=(await made.admin.get(f"/users/{name}"))["uid"])
    (others,) = (namespace for user, namespace in NAMESPACES.items() if user != name)

    async def groups() -> set[str]:
        status, body = await person.call("POST", REVIEWS, REVIEW)
        assert status == 201, body
        return {group for group in body["status"]["userInfo"]["groups"] if group.startswith("gems:")}

    check: Callable[[], Awaitable[set[str]]] = groups
    found: set[str] = await eventually(check, within=30)
    tenant = NAMESPACES[name].partition("-")[0]
    assert all(f":{tenant}" in group or group == "gems:users" for group in found), found
    return Asking(person, found, f"/k8s/clusters/local/api/v1/namespaces/{others}/configmaps")
