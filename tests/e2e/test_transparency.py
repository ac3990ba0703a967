"""What real kubectl and helm releases send gets the same answer directly and through the hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from libs.kube.connection import Connection
from tests.corpus import corpus, replay
from tests.corpus.corpus import Recorded
from tests.corpus.replay import Answer, Side
from tests.e2e.world import World
from tests.kit.platform import Platform

_TRIES = 12  # objects move between two reads: ages in tables, statuses, versions of lists
_PAUSE = 0.2
_CLIENTS = sorted(corpus.FOLDER.glob("*.jsonl"))
_NAMED_BY_SERVER = (
    "/token",
    "/selfsubjectreviews",
    "/selfsubjectrulesreviews",
    "/selfsubjectaccessreviews",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two ways."""

    direct: Side
    hub: Side

    async def read(self, recorded: Recorded, namespace: str) -> tuple[Answer, Answer]:
        """The same objects read both ways, until they stand still."""
        for _ in range(_TRIES):
            both = await asyncio.gather(self.direct.send(recorded, namespace), self.hub.send(recorded, namespace))
            if both[0] == both[1]:
                break
            await asyncio.sleep(_PAUSE)
        return both[0], both[1]


@pytest.fixture(scope="module")
async def pair(platform: World, stack: Platform) -> AsyncIterator[Pair]:
    """The cluster's own admin, and the platform's admin through the hub: both may do everything."""
    own = await Connection.from_kubeconfig(Path(stack.endpoints["kubeconfig"]))
    assert own.tls
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        direct = Side(session, own.server, own.tls, await own.authorization())
        hub = Side(session, stack.endpoints["rest"] + "/k8s/clusters/local", platform.admin.tls, f"Bearer {platform.admin.token}")
        yield Pair(direct, hub)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("client", _CLIENTS, ids=lambda file: file.stem)
async def test_the_hub_is_transparent(pair: Pair, client: Path) -> None:
    """Reads of the same objects are equal byte for byte; the same changes in two namespaces answer alike; so do upgrades."""
    number = _CLIENTS.index(client)
    mine, others = f"corpus-{number * 2 + 1}", f"corpus-{number * 2 + 2}"
    different = []
    for recorded in corpus.read(client):
        if recorded.reads or recorded.upgrades:
            direct, hub = await pair.read(recorded, mine)
            same = (direct.body, hub.body)
        else:
            direct, hub = await asyncio.gather(pair.direct.send(recorded, mine), pair.hub.send(recorded, others))
            same = (replay.masked(direct, mine), replay.masked(hub, others))
            if recorded.target.partition("?")[0].endswith(_NAMED_BY_SERVER):
                same = (b"", b"")
        if told := replay.difference(direct, hub, same):
            different.append(f"{recorded.command}: {recorded.method} {recorded.target}\n  {told}")
    assert not different, f"{len(different)} differ\n" + "\n".join(different)[:20_000]


def test_a_difference_is_told() -> None:
    """Another status, header or body is found; ids, times and versions are no difference."""
    kept = {"content-type": ["application/json"]}
    one = Answer(200, kept, b'{"kind":"ConfigMap","metadata":{"uid":"1","namespace":"corpus-1"},"data":{"a":"b"}}')
    same = Answer(200, kept, b'{"kind":"ConfigMap","metadata":{"uid":"2","namespace":"corpus-2"},"data":{"a":"b"}}')
    other = Answer(201, {}, b'{"kind":"ConfigMap","metadata":{"uid":"2","namespace":"corpus-2"},"data":{"a":"c"}}')
    bodies = replay.masked(one, "corpus-1"), replay.masked(same, "corpus-2"), replay.masked(other, "corpus-2")
    assert replay.difference(one, same, bodies[:2]) == ""
    told = replay.difference(one, other, (bodies[0], bodies[2]))
    assert all(word in told for word in ("status 200", "headers", "body at")), told


def test_the_corpus_holds_old_and_new_clients() -> None:
    """Four releases over thirteen minor versions, helm 3 and 4, protobuf bodies, watches and upgrades of both kinds."""
    assert len(_CLIENTS) == 4
    recorded = [one for client in _CLIENTS for one in corpus.read(client)]
    kinds = {value for one in recorded for name, value in one.headers if name.lower() == "content-type"}
    assert {replay.PROTOBUF, "application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"} <= kinds
    upgrades = {value.lower() for one in recorded for name, value in one.headers if name.lower() == "upgrade"}
    assert {one.method for one in recorded} >= {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert any(one.watches for one in recorded)
    assert upgrades == {"websocket", "spdy/3.1"}
    assert not any("authorization" in name.lower() for one in recorded for name, _ in one.headers)
