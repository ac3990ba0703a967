"""The world before the CRDs are there, and what nodes are to it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from libs.kube import Change, KindMissing, Page, Resource
from libs.kube.resources import ENVIRONMENTS, NODES
from services.controller import world as worlds
from services.controller.world import World


class Server:
    """Lists nothing, and lacks our kinds until told otherwise; its watches stay silent."""

    def __init__(self) -> None:
        self.installed = asyncio.Event()

    async def page(self, resource: Resource, _namespace: str | None = None, **_options: Any) -> Page:
        if resource.group == "gems.kubegems.io" and not self.installed.is_set():
            raise KindMissing(f"no {resource.plural} here")
        return Page([], "1", "")

    @contextlib.asynccontextmanager
    async def request(self, *_args: Any, **_options: Any) -> Any:
        await asyncio.Event().wait()
        yield


async def test_it_waits_for_missing_crds_and_says_which(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    """No crash, no guess: the kinds are named until they appear, then work can begin."""
    monkeypatch.setattr(worlds, "_RETRY", 0.05)
    server = Server()
    changes: list[tuple[Resource, Change]] = []
    world = World(server, on_change=lambda *change: changes.append(change))  # type: ignore[arg-type] # a double
    task = asyncio.create_task(world.run(), name="world")
    synced = asyncio.create_task(world.synced(), name="synced")
    await eventually(lambda: len(world.problems()) == 4, within=5)
    assert world.problems()[ENVIRONMENTS.kind] == "KIND_MISSING"
    assert not synced.done()
    server.installed.set()
    await eventually(synced.done, within=5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_nodes_heartbeat_concerns_nobody() -> None:
    """Only a change of pod addresses is told: nodes report all the time."""
    told: list[Resource] = []
    world = World(Server(), pod_cidrs=("10.1.0.0/16",), on_change=lambda resource, _: told.append(resource))  # type: ignore[arg-type] # a double
    reflector = world._reflectors[NODES]

    async def seen(version: str, cidr: str) -> None:
        node = {"metadata": {"name": "n", "resourceVersion": version}, "spec": {"podCIDR": cidr}, "status": {"big": "x"}}
        await reflector._tell(reflector.store.put(worlds._node(node)))

    await seen("1", "10.0.0.0/24")
    await seen("2", "10.0.0.0/24")
    assert told == [NODES]
    await seen("3", "10.0.1.0/24")
    assert told == [NODES, NODES]
    assert world.pod_cidrs == ("10.0.1.0/24", "10.1.0.0/16")
