"""The Reflector's copy equals the cluster, through every way a watch can end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from libs import faults
from libs.kube import Change, KubeClient, Reflector, Resource, Verb
from libs.kube.resources import CONFIG_MAPS, CUSTOM_RESOURCE_DEFINITIONS


class Seen:
    """Changes as they were told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    async def take(self, change: Change) -> None:
        """Takes one."""
        self.changes.append((change.verb.value, change.object.get("metadata", {}).get("name", "")))


@asynccontextmanager
async def running(reflector: Reflector) -> AsyncIterator[Reflector]:
    task = asyncio.create_task(reflector.run(), name="reflector")
    try:
        yield reflector
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


@pytest.mark.cluster
async def test_copy_follows_a_real_server(kube: KubeClient, namespace: str, eventually: Any) -> None:
    """List, then each change, in order; LISTED closes the list."""
    seen = Seen()
    await kube.create(CONFIG_MAPS, config_map("first"), namespace)
    reflector = Reflector(kube, CONFIG_MAPS, seen.take, namespace=namespace, field_selector="metadata.name!=kube-root-ca.crt", page_size=1)
    async with running(reflector):
        await asyncio.wait_for(reflector.synced.wait(), 10)
        await kube.create(CONFIG_MAPS, config_map("second"), namespace)
        await kube.patch(CONFIG_MAPS, "second", {"data": {"x": "1"}}, namespace)
        await kube.delete(CONFIG_MAPS, "first", namespace)
        await eventually(lambda: ("DELETED", "first") in seen.changes, within=5)
    assert seen.changes == [("ADDED", "first"), ("LISTED", ""), ("ADDED", "second"), ("MODIFIED", "second"), ("DELETED", "first")]
    assert reflector.store.get("second", namespace)["data"] == {"x": "1"}  # type: ignore[index] # it is there
    assert [found["metadata"]["name"] for found in reflector.store.find("namespace", namespace)] == ["second"]


@pytest.fixture
async def things(kube: KubeClient) -> AsyncIterator[Resource]:
    """A kind of its own: the server's memory of it starts now, so version 1 is too old."""
    group = f"t{secrets.token_hex(4)}.kubegems.test"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": group, "scope": "Cluster", "names": {"kind": "Thing", "plural": "things"}, "versions": [version]}
    await kube.create(CUSTOM_RESOURCE_DEFINITIONS, {"metadata": {"name": f"things.{group}"}, "spec": spec})
    yield Resource(group, "v1", "things", "Thing", namespaced=False)
    await kube.delete(CUSTOM_RESOURCE_DEFINITIONS, f"things.{group}")


@pytest.mark.cluster
async def test_a_new_kind_appears_and_a_version_too_old_lists_again(kube: KubeClient, things: Resource, eventually: Any) -> None:
    """A kind not served yet is waited for; the real server's 410 leads to a list that tells only what differs."""
    seen = Seen()
    reflector = Reflector(kube, things, seen.take, max_delay=0.2)
    async with running(reflector):
        await asyncio.wait_for(reflector.synced.wait(), 20)
        for name in ("kept", "gone"):
            await kube.create(things, {"metadata": {"name": name}})
        await eventually(lambda: len(reflector.store) == 2, within=5)
    await kube.delete(things, "gone")
    await kube.create(things, {"metadata": {"name": "new"}})
    seen.changes.clear()
    reflector._version = "1"
    async with running(reflector):
        await eventually(lambda: ("LISTED", "") in seen.changes, within=10)
    assert seen.changes == [("ADDED", "new"), ("DELETED", "gone"), ("LISTED", "")]
    assert reflector.lists == 2


@pytest.mark.cluster
async def test_silence_ends_a_watch_and_nothing_is_lost(kube: KubeClient, namespace: str, eventually: Any) -> None:
    """A watch without a byte is given up and taken up again from the last version, without a list."""
    seen = Seen()
    reflector = Reflector(kube, CONFIG_MAPS, seen.take, namespace=namespace, silence=0.2, max_delay=0.2)
    async with running(reflector):
        await asyncio.wait_for(reflector.synced.wait(), 10)
        await eventually(lambda: isinstance(reflector.problem, faults.DeadlineExceeded), within=5)
        await kube.create(CONFIG_MAPS, config_map("late"), namespace)
        await eventually(lambda: ("ADDED", "late") in seen.changes, within=5)
    assert reflector.lists == 1


@pytest.mark.cluster
async def test_a_kind_that_is_missing_is_waited_for(kube: KubeClient, eventually: Any) -> None:
    """No CRD: the reflector says so, is not synced, and goes on trying."""
    reflector = Reflector(kube, Resource("nowhere.example.com", "v1", "things", "Thing", namespaced=False), max_delay=0.1)
    async with running(reflector):
        await eventually(lambda: reflector._failures > 2, within=5)
        assert reflector.problem is not None
        assert reflector.problem.reason == "KIND_MISSING"
        assert not reflector.synced.is_set()


def item(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "resourceVersion": str(version)}}


def line(kind: str, found: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "object": found}) + b"\n"


class Scripted:
    """An API server that answers lists and watches as told; the last watch stays open."""

    def __init__(self, lists: list[list[dict[str, Any]]], watches: list[Callable[[web.StreamResponse], Any] | int]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One list or watch."""
        if "watch" not in request.query:
            self.asked.append("list")
            items = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            return web.json_response({"metadata": {"resourceVersion": "10"}, "items": items})
        self.asked.append(request.query["resourceVersion"])
        step = self.watches.pop(0) if self.watches else None
        if isinstance(step, int):
            return web.json_response({"kind": "Status", "code": step, "reason": "Expired" if step == 410 else ""}, status=step)
        response = web.StreamResponse()
        await response.prepare(request)
        if step is None:
            await asyncio.sleep(60)
        else:
            await step(response)
        return response

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[KubeClient]:
        """Stands up, and gives a client of it."""
        app = web.Application()
        app.router.add_get("/{tail:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(
            f"apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{name: x, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n"
            "users: [{name: x, user: {token: t}}]\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n"
        )
        async with await KubeClient.from_kubeconfig(kubeconfig) as client:
            yield client
        await runner.cleanup()


async def error_event(response: web.StreamResponse) -> None:
    await response.write(line("ADDED", item("b", 11)))
    await response.write(line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}))


async def cut_line(response: web.StreamResponse) -> None:
    whole = line("ADDED", item("b", 11))
    await response.write(whole[:20])
    await asyncio.sleep(0.02)
    await response.write(whole[20:] + line("BOOKMARK", {"metadata": {"resourceVersion": "15"}}))


@pytest.mark.parametrize("watches", [[410], [error_event]], ids=["status", "event"])
async def test_both_forms_of_410(tmp_path: Path, eventually: Any, watches: list[Any]) -> None:
    """410 as HTTP status and as ERROR event: list again, synthetic DELETED for what is gone."""
    seen = Seen()
    server = Scripted([[item("a", 1), item("b", 2)], [item("a", 1)]], watches)
    async with server.serve(tmp_path) as client, running(Reflector(client, CONFIG_MAPS, seen.take, max_delay=0.1)):
        await eventually(lambda: seen.changes.count(("LISTED", "")) == 2, within=5)
    assert seen.changes[-2:] == [("DELETED", "b"), ("LISTED", "")]
    assert server.asked[:3] == ["list", "10", "list"]


async def test_bookmarks_move_the_version(tmp_path: Path, eventually: Any) -> None:
    """A line cut in two is one event; after a bookmark the next watch starts at its version, without a list."""
    seen = Seen()
    server = Scripted([[]], [cut_line])
    async with server.serve(tmp_path) as client, running(Reflector(client, CONFIG_MAPS, seen.take, max_delay=0.1)):
        await eventually(lambda: "15" in server.asked, within=5)
    assert seen.changes == [("LISTED", ""), ("ADDED", "b")]
    assert server.asked == ["list", "10", "15"]


async def test_a_server_that_keeps_expiring_is_not_hammered(tmp_path: Path) -> None:
    """410 for ever leads to waits that grow, not to a busy loop."""
    server = Scripted([[]], [410] * 1000)
    async with server.serve(tmp_path) as client, running(Reflector(client, CONFIG_MAPS)):
        await asyncio.sleep(1)
    assert 2 <= server.asked.count("list") <= 8


async def test_a_slow_receiver_slows_the_watch(tmp_path: Path, eventually: Any) -> None:
    """While the receiver works, at most the socket's buffers are read: memory is bounded by the receiver's pace."""
    written = 0
    free = asyncio.Event()
    told = 0

    async def flood(response: web.StreamResponse) -> None:
        nonlocal written
        for number in range(20_000):
            await response.write(line("MODIFIED", {**item("a", 11 + number), "padding": "x" * 2000}))
            written += 1

    async def slow(change: Change) -> None:
        nonlocal told
        if change.verb is not Verb.LISTED:
            told += 1
            await free.wait()

    server = Scripted([[]], [flood])
    async with server.serve(tmp_path) as client, running(Reflector(client, CONFIG_MAPS, slow)):
        await eventually(lambda: told == 1, within=5)
        await asyncio.sleep(0.3)
        stuck = written
        assert stuck < 15_000
        free.set()
        await eventually(lambda: told == 20_000, within=20)
