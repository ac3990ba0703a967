"""The rounds: while users work, something breaks; then the oracle looks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.link.actions import STORES, UNKNOWN_SECONDS, Actions
from tests.chaos.link.rig import Rig
from tests.chaos.link.traffic import POD, Bodies, Stream
from tests.chaos.link.users import AWAY, REVIEW, REVIEWS, Asking, Person
from tests.e2e.world import World, world
from tests.kit.eventually import eventually, timescale

BACK_SECONDS = 60.0  # the longest pause between an agent's dials is 30 s
AGREE_SECONDS = 60.0
SHOP = "/tenants/initech/projects/shop/environments"
_REX = f"{SHOP}/dev/members/rex"
NAMESPACES = {"ivy": "initech-shop-dev", "eve": "globex-shop-dev"}
_UID = "gems.kubegems.io/uid"


@dataclass
class Story:
    """What was asked for, and what was seen.

    Attributes:
        wanted: CPU limit of each environment that was acknowledged, by name.
        told: one line per round.
        kinds: of streams.
        asking, streams, bodies: what never stops.
        away: seconds until the cluster was back, by round.
        ended: seconds until a stream of a revoked right was over, of each that was open when it was revoked.
    """

    rig: Rig
    world: World
    seed: str
    admin: Person
    rex: Person
    asking: list[Asking]
    kinds: Sequence[str]
    streams: list[Stream]
    bodies: list[Bodies]
    wanted: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    away: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    async def run(self, rounds: int) -> None:
        """All rounds; raises AssertionError at the first that ends wrong."""
        actions = Actions(self.rig, self.seed, lambda: [f"{s.person.name}'s {s.kind}" for s in self.streams if s.live])
        async with _going(self.asking, self.streams, self.bodies) as tasks:
            for number in range(rounds):
                await self._round(number, actions)
                for task in tasks:
                    assert not task.done(), f"{task.get_name()} has ended"
        for each in self.asking:
            assert each.seen["201"] >= rounds, f"the control: {each.person.name} was answered: {each.seen}"
            assert each.seen["other's 403"] >= rounds / 3, f"the control: {each.person.name} was refused: {each.seen}"
        for stream in self.streams:
            assert stream.seen["events"] + stream.seen["echoes"] >= rounds, (
                f"the control: {stream.person.name}'s {stream.kind}: {stream.seen}"
            )
        for body in self.bodies:
            assert min(body.seen["body 201"], body.seen["mark 200"]) >= rounds, f"the control: bodies of {body.person.name}: {body.seen}"
        assert len(self.ended) >= rounds / 2, f"the control: streams that were open when their right was revoked: {self.ended}"

    async def _round(self, number: int, actions: Actions) -> None:
        rng = random.Random(f"{self.seed} round {number}")
        struck, begun = actions.drawn(number), time.monotonic()
        agent = self.rig.platform.pid("agent")
        await self.admin.insist("PUT", _REX, {"role": "OPERATOR"})
        streams = [Stream(self.rex, NAMESPACES["ivy"], kind) for kind in self.kinds]
        async with _going(streams):
            await eventually(lambda: all(stream.live for stream in streams), within=BACK_SECONDS)
            self.streams += streams
            async with asyncio.TaskGroup() as group:
                changing = group.create_task(self._change(number, random.Random(f"{self.seed} changes {number}")), name="changes")
                revoking = group.create_task(self._revoke(number, struck, rng.uniform(0, 4), streams), name="revocation")
                done = await actions.strike(struck, rng)
                whole = time.monotonic()
                await self._online()
                self.away.append(time.monotonic() - whole)
                await asyncio.gather(changing, revoking)
        await self._agree()
        await eventually(self._one_holder, within=15, every=0.3)
        if "kill agent" not in struck:
            assert self.rig.platform.pid("agent") == agent, f"the agent ended by itself after {done}"
        everyone: tuple[Asking | Stream | Bodies, ...] = (*self.asking, *self.streams, *self.bodies)
        wrong = [line for each in everyone for line in each.wrong]
        assert not wrong, "\n".join(wrong[:10]) + f"\nafter {done}"
        self.streams = [stream for stream in self.streams if stream not in streams]
        line = f"round {number}: {done}; back after {self.away[-1]:.1f} s; {revoking.result()}"
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

    async def _revoke(self, number: int, struck: Sequence[str], after: float, streams: Sequence[Stream]) -> str:
        """A right is taken away under which streams are open, or being opened again: they are over in time."""
        await asyncio.sleep(after)
        await self.admin.insist("DELETE", _REX, key=f"{self.seed} revoke {number}")
        revoked, bound = time.monotonic(), UNKNOWN_SECONDS if STORES.intersection(struck) else 1.0
        told = []
        for stream in streams:
            stream.over = True
        await eventually(lambda: not any(stream.live for stream in streams), within=60, every=0.02)
        await asyncio.sleep(bound * timescale())  # none begins that late
        for stream in streams:
            assert not stream.live, f"rex's {stream.kind} began after his right was revoked"
            since = revoked
            if "hang" in struck and stream.url == self.rig.doors.stood_still:  # who stands still ends nothing, and passes nothing on
                since = max(since, self.rig.thawed)
            if stream.ended < revoked:
                continue
            took = max(0.0, stream.ended - since)
            assert took <= bound * timescale(), f"rex's {stream.kind} went on for {took:.2f} s of {bound} s"
            self.ended.append(took)
            told.append(f"{took:.2f} s to the end of a revoked {stream.kind}")
        return ", ".join(told) or "no stream was left to revoke"

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
        kinds = ["watch"] if any("`kubectl exec`" in line for line in rig.platform.said) else ["watch", "exec"]
        for each in asking:
            await _pod(each.person)
        streams = [Stream(each.person, NAMESPACES[each.person.name], kind) for each in asking for kind in kinds]
        bodies = [Bodies(each.person, NAMESPACES[each.person.name]) for each in asking]
        yield Story(rig, made, seed, admin, rex, asking, kinds, streams, bodies)


async def _pod(person: Person) -> None:
    """One to run commands in."""
    spec = {"containers": [{"name": "c", "image": "registry.example/c"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD}, "spec": spec}
    path = f"/k8s/clusters/local/api/v1/namespaces/{NAMESPACES[person.name]}/pods"
    status, answer = await person.call("POST", path, pod)
    assert status == 201, answer

    async def runs() -> None:
        _, shown = await person.call("GET", f"{path}/{POD}")
        assert shown["status"]["phase"] == "Running", shown

    await eventually(runs, within=30)


@contextlib.asynccontextmanager
async def _going(*some: Sequence[Asking] | Sequence[Stream] | Sequence[Bodies]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Runs all for the length of a block; a failure of one of them is the block's."""
    tasks = [asyncio.create_task(one.run(), name=f"{type(one).__name__} of {one.person.name}") for each in some for one in each]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for error in found:
            if isinstance(error, Exception):
                raise error


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
