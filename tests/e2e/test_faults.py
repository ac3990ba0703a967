"""Every part is killed by SIGKILL in the middle of the main job; the end state is the same, nothing lost or doubled.

The oracles (decisions.md 28): acknowledged writes = rows = objects; each request id once; audit outcomes = calls; one
claim per job's outcome; a subscriber's view = the cluster's list.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.e2e.world import DEV, World
from tests.kit.eventually import eventually
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(300)]
PARTS = ("agent", "controller", "worker", "msgbus", "gateway", "nats", "postgresql")
SHOP = "tenants/initech/projects/shop"
TRY_AGAIN = {429, 499, 502, 503, 504}


async def insist(platform: World, method: str, path: str, body: Any, key: str) -> Any:
    """Asks with the same idempotency key until there is an answer, as a careful client does."""

    async def once() -> Any:
        try:
            answer = await platform.admin.call(method, path, body, Idempotency_Key=key)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AssertionError(repr(error)) from error
        assert answer.status not in TRY_AGAIN, answer.body
        assert answer.status != 401, answer.body
        return answer.ok()

    return await eventually(once, within=60, every=0.3)


@dataclass
class Subscriber:
    """Keeps a view of resource quotas by following the stream; lists again at RESYNC and after each break.

    A scope that is revoked, as when its environment is gone before the news of its objects, takes them along.
    """

    platform: World
    view: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except (aiohttp.ClientError, AssertionError, OSError, TimeoutError):
                await asyncio.sleep(0.3)

    async def _follow(self) -> None:
        fresh: dict[tuple[str, str], tuple[str, str]] | None = {}
        path = "/messages:subscribe?snapshot=true&resources=resourcequotas&scopes=tenants/initech"
        async with aclosing(self.platform.admin.events(path)) as events:
            async for event in events:
                if event["kind"] == "RESYNC":
                    return
                if event["kind"] == "SNAPSHOT_END" and fresh is not None and not event.get("scope"):
                    self.view, fresh = fresh, None
                into = self.view if fresh is None else fresh
                if event["kind"] == "SCOPE_REVOKED":
                    for key in [key for key, (_, environment) in into.items() if environment == event["scope"]]:
                        del into[key]
                if event["kind"] == "CHANGE":
                    change = event["change"]
                    key = (change["namespace"], change["object"])
                    if change["verb"] == "DELETED":
                        into.pop(key, None)
                    else:
                        into[key] = (change["uid"], change["environment"])


@pytest.mark.parametrize("part", PARTS)
async def test_killing_a_part_in_the_middle_changes_nothing_in_the_end(platform: World, stack: Platform, part: str) -> None:
    """Environments and a job are asked for while the part dies; all of it comes true exactly once."""
    rng = random.Random(f"faults {part}")
    names = [f"{part[:5]}{i}" for i in range(3)]
    subscriber = Subscriber(platform)
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(subscriber.run(), name="subscriber")
        created = [group.create_task(_create(platform, name, rng.uniform(0, 0.6)), name=name) for name in names]
        job = group.create_task(_job(platform, f"job-{part}"), name="job")
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        killed = stack.kill(part)
        print(f"killed {part} ({killed})")
        await stack.back(part, other_than=killed)
        uids = {str((await task)["uid"]) for task in created}
        job_name = await job
        for name in names:
            await platform.ready(f"{SHOP}/environments/{name}", within=60)
        await _one_object_each(platform, names, uids)
        await _job_once(platform, job_name)
        await _audited_once(platform, names)
        await eventually(lambda: _same_view(platform, subscriber), within=60, every=0.5, what=f"view after {part}")
        listening.cancel()
    for name in names:
        await insist(platform, "DELETE", f"/{SHOP}/environments/{name}", None, f"delete-{name}")


async def _create(platform: World, name: str, delay: float) -> Any:
    await asyncio.sleep(delay)
    body = {"environmentId": name, "environment": {"cluster": "clusters/local", "quota": {"limits.cpu": "100m"}}}
    return await insist(platform, "POST", f"/{SHOP}/environments", body, f"create-{name}")


async def _job(platform: World, key: str) -> str:
    body = {"job": {"kind": "environment-usage-report", "target": DEV}}
    return str((await insist(platform, "POST", "/jobs", body, key))["name"])


async def _one_object_each(platform: World, names: list[str], uids: set[str]) -> None:
    """Acknowledged writes = rows = objects in the cluster, by uid."""
    rows = (await platform.admin.get(f"/{SHOP}/environments?pageSize=500"))["environments"]
    assert {r["uid"] for r in rows if r["name"].rsplit("/", 1)[-1] in names} == uids
    objects = (await platform.cluster.json("get", "environments.gems.kubegems.io"))["items"]
    found = Counter(o["metadata"]["annotations"]["gems.kubegems.io/uid"] for o in objects)
    assert all(found[uid] == 1 for uid in uids), found


async def _job_once(platform: World, name: str) -> None:
    async def done() -> Any:
        try:
            job = await platform.admin.get(f"/{name}")
        except aiohttp.ClientError as error:
            raise AssertionError(repr(error)) from error
        assert job["state"] == "SUCCEEDED", job
        return job

    assert (await eventually(done, within=90, every=0.3, what=f"{name} done"))["attempts"] >= 1


async def _audited_once(platform: World, names: list[str]) -> None:
    """Each acknowledged creation has one OK record, however often it was asked for."""
    query = "/audit/events?pageSize=500&filter=method%20%3D%20%22/kubegems.tenancy.v1.EnvironmentService/CreateEnvironment%22"

    async def recorded() -> Any:
        events = (await platform.admin.get(query))["auditEvents"]
        ok = Counter(r for e in events if e["outcome"] == "OK" for r in e["resources"])
        assert all(ok[f"{SHOP}/environments/{name}"] == 1 for name in names), ok
        return True

    await eventually(recorded, within=10, every=0.5)


async def _same_view(platform: World, subscriber: Subscriber) -> bool:
    listed = (await platform.cluster.json("get", "resourcequotas", "--all-namespaces"))["items"]
    real = {
        (q["metadata"]["namespace"], q["metadata"]["name"]): q["metadata"]["uid"]
        for q in listed
        if q["metadata"]["namespace"].startswith("initech-")
    }
    seen = {key: uid for key, (uid, _) in subscriber.view.items()}
    assert seen == real, set(seen) ^ set(real)
    return True
