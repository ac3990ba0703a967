"""Observed changes: complete, numbered without gaps, bounded while the bus is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import events_pb2
from libs import faults
from libs.clock import HeldClock
from libs.kube import KubeClient, Store
from libs.kube.resources import DEPLOYMENTS, NAMESPACES, PODS
from libs.kube.store import LISTED, key_of
from services.agent.observed.columns import columns_of
from services.agent.observed.feed import Feed
from services.agent.observed.observer import Observer
from services.agent.observed.publisher import Publisher, Rate
from services.agent.observed.trim import trim

Wire = events_pb2.ObservedChange


class Broker:
    """A bus that keeps what it took, and can be away or drop acks."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Wire, str]] = []
        self.away = False
        self.flaky = 0.0
        self.random = random.Random(7)
        self.tries = 0

    async def publish(self, subject: str, message: Any, *, id: str) -> None:  # noqa: A002 -- the bus has it so
        """Stores, unless away; when flaky an ack is lost now and then."""
        self.tries += 1
        await asyncio.sleep(0)
        if self.away or self.random.random() < self.flaky / 2:
            raise faults.Unavailable("away")
        copy = Wire()
        copy.CopyFrom(message)
        self.taken.append((subject, copy, id))
        if self.random.random() < self.flaky / 2:
            raise faults.Unavailable("ack lost")

    def messages(self) -> list[Wire]:
        """What a consumer sees that drops duplicates by id, as JetStream does."""
        return list({identity: message for _, message, identity in reversed(self.taken)}.values())[::-1]


class Kind:
    """A feed with its copy, fed as a Reflector would."""

    def __init__(self, limit: int = 100) -> None:
        self.store = Store()
        self.feed = Feed(PODS, self.store, epoch="e", limit=limit)
        self.version = 0

    async def put(self, name: str) -> None:
        """An object came or changed."""
        self.version += 1
        metadata = {"name": name, "namespace": "n", "uid": f"u-{name}", "resourceVersion": str(self.version)}
        change = self.store.put(trim(PODS)({"metadata": metadata}))
        assert change is not None
        await self.feed.take(change)

    async def drop(self, name: str) -> None:
        """An object went."""
        change = self.store.remove(("n", name))
        assert change is not None
        await self.feed.take(change)


@asynccontextmanager
async def publishing(broker: Broker, feed: Feed, per_second: float = 100_000) -> AsyncIterator[None]:
    publisher = Publisher(broker, cluster_uid="c", rate=Rate(per_second), clock=HeldClock(), registry=CollectorRegistry(), max_delay=0.05)
    task = asyncio.create_task(publisher.run(feed), name="publisher")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def replayed(messages: list[Wire]) -> set[str]:
    """The objects that a consumer holds in the end; it checks the numbers on the way."""
    assert [m.counter for m in messages] == list(range(1, len(messages) + 1))
    held: set[str] = set()
    listing: set[str] | None = None
    for message in messages:
        if message.verb == Wire.LISTING:
            listing = set()
        elif message.verb == Wire.LISTED:
            assert listing is not None
            held, listing = listing, None
        elif message.verb == Wire.DELETED:
            held.discard(message.name)
        else:
            (held if listing is None else listing).add(message.name)
    return held


async def test_a_list_comes_first_then_changes(eventually: Callable[..., Awaitable[Any]]) -> None:
    """LISTING, each object once, LISTED; then each change, with numbers, subject and epoch."""
    broker, kind = Broker(), Kind()
    await kind.put("a")
    await kind.put("b")
    async with publishing(broker, kind.feed):
        await asyncio.sleep(0.02)
        assert broker.taken == []
        await kind.feed.take(LISTED)
        await eventually(lambda: len(broker.taken) == 4, within=5)
        await kind.put("a")
        await kind.drop("b")
        await eventually(lambda: len(broker.taken) == 6, within=5)
    verbs = [(m.verb, m.name) for m in broker.messages()]
    assert verbs[0] == (Wire.LISTING, "")
    assert set(verbs[1:3]) == {(Wire.ADDED, "a"), (Wire.ADDED, "b")}
    assert verbs[3:] == [(Wire.LISTED, ""), (Wire.MODIFIED, "a"), (Wire.DELETED, "b")]
    assert broker.taken[-1][0] == "gems.cluster.c.core.v1.pods.n"
    assert {m.epoch for m in broker.messages()} == {"e"}
    assert replayed(broker.messages()) == {"a"}


async def test_an_absent_bus_keeps_only_the_newest_of_each(eventually: Callable[..., Awaitable[Any]]) -> None:
    """A thousand changes of three objects are three messages when the bus is back, and no list."""
    broker, kind = Broker(), Kind()
    await kind.feed.take(LISTED)
    async with publishing(broker, kind.feed):
        await eventually(lambda: len(broker.taken) == 2, within=5)
        broker.away = True
        await kind.put("z")
        await eventually(lambda: broker.tries > 3, within=5)
        for number in range(1000):
            await kind.put(f"p{number % 3}")
        assert len(kind.feed) == 3
        broker.away = False
        await eventually(lambda: len(broker.messages()) == 6, within=5)
    assert kind.feed.relists == 0
    assert replayed(broker.messages()) == {"z", "p0", "p1", "p2"}
    assert [m.verb for m in broker.messages()[2:]] == [Wire.ADDED] * 4
    assert broker.messages()[-1].resource_version == "1001"


async def test_an_absent_bus_costs_bounded_memory(eventually: Callable[..., Awaitable[Any]]) -> None:
    """Beyond the limit waiting changes are forgotten and the kind is listed afresh, numbers going on without a gap."""
    broker, kind = Broker(), Kind(limit=50)
    await kind.feed.take(LISTED)
    async with publishing(broker, kind.feed):
        await eventually(lambda: len(broker.taken) == 2, within=5)
        broker.away = True
        await kind.put("first")
        await eventually(lambda: broker.tries > 3, within=5)
        most = 0
        for number in range(500):
            await kind.put(f"p{number}")
            most = max(most, len(kind.feed))
        for number in range(400):
            await kind.drop(f"p{number}")
        assert most <= 50
        broker.away = False
        await eventually(lambda: broker.messages()[-1].verb == Wire.LISTED and len(broker.messages()) > 3, within=5)
    assert kind.feed.relists == 1
    assert replayed(broker.messages()) == {"first"} | {f"p{n}" for n in range(400, 500)}


async def test_lost_acks_make_duplicates_but_no_gaps(eventually: Callable[..., Awaitable[Any]]) -> None:
    """With a flaky bus a consumer that drops duplicates by id ends with what the copy holds."""
    broker, kind = Broker(), Kind(limit=1000)
    broker.flaky = 0.05
    await kind.feed.take(LISTED)
    chance = random.Random(3)
    async with publishing(broker, kind.feed):
        for _ in range(600):
            name = f"p{chance.randrange(40)}"
            if kind.store.get(name, "n") and chance.random() < 0.4:
                await kind.drop(name)
            else:
                await kind.put(name)
            await asyncio.sleep(0)
        await eventually(lambda: not kind.feed.waiting.is_set(), within=20)
        there = {key_of(found)[1] for found in kind.store}
        await eventually(lambda: replayed(sorted(broker.messages(), key=lambda m: m.counter)) == there, within=20)
    assert len(broker.taken) > len(broker.messages())


async def test_changes_during_a_list_come_after_it(eventually: Callable[..., Awaitable[Any]]) -> None:
    """An object that changes or goes while the list is sent is right in the end."""
    broker, kind = Broker(), Kind(limit=1000)
    for number in range(300):
        await kind.put(f"p{number}")
    await kind.feed.take(LISTED)
    assert len(kind.feed.take_out(64)) == 64
    kind.feed.done()
    await kind.drop("p299")
    await kind.put("p5")
    await kind.put("new")
    rest: list[Wire] = []
    while kind.feed.waiting.is_set():
        rest += kind.feed.take_out(64)
        kind.feed.done()
    assert [(m.verb, m.name) for m in rest[-4:]] == [(Wire.LISTED, ""), (Wire.DELETED, "p299"), (Wire.MODIFIED, "p5"), (Wire.ADDED, "new")]
    assert broker.taken == []


async def test_a_publisher_that_is_stopped_leaves_no_gap(eventually: Callable[..., Awaitable[Any]]) -> None:
    """What was numbered but not sent goes out first when publishing starts again."""
    broker, kind = Broker(), Kind()
    broker.away = True
    await kind.put("a")
    await kind.feed.take(LISTED)
    async with publishing(broker, kind.feed):
        await eventually(lambda: broker.tries >= 3, within=5)
    broker.away = False
    kind.feed.restart(kind.store)
    async with publishing(broker, kind.feed):
        await eventually(lambda: len(broker.taken) == 3, within=5)
        await kind.feed.take(LISTED)
        await eventually(lambda: len(broker.taken) == 6, within=5)
    assert replayed(broker.messages()) == {"a"}


async def test_the_rate_is_bounded() -> None:
    """A storm goes out at the rate, coalesced."""
    broker, kind = Broker(), Kind(limit=1000)
    await kind.feed.take(LISTED)
    async with publishing(broker, kind.feed, per_second=100):
        for number in range(2000):
            await kind.put(f"p{number % 500}")
        await asyncio.sleep(0.5)
    assert len(broker.taken) <= 64 + 100 + 64


def test_labels_are_limited_and_ours_stay() -> None:
    """Of many labels 64 are kept, the ones that place an object first."""
    labels = {f"a{n:03}": "x" for n in range(200)} | {"gems.kubegems.io/tenant": "acme"}
    kept = trim(PODS)({"metadata": {"name": "p", "namespace": "n", "labels": labels}})["metadata"]["labels"]
    assert len(kept) == 64
    assert kept["gems.kubegems.io/tenant"] == "acme"


def test_columns_of_pods_and_deployments() -> None:
    """What lists show of a pod and a Deployment."""
    pod = {
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "n1", "containers": [{}, {}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"ready": True, "restartCount": 2},
                {"ready": False, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
            ],
        },
    }
    assert columns_of(PODS.key, pod) == {
        "created": "2026-01-01T00:00:00Z", "phase": "Running", "ready": "1/2", "restarts": "3", "node": "n1", "reason": "CrashLoopBackOff",
    }  # fmt: skip
    deployment = {"metadata": {"name": "d"}, "spec": {"replicas": 3}, "status": {"readyReplicas": 1}}
    expected = {"replicas": "3", "readyReplicas": "1", "updatedReplicas": "0", "availableReplicas": "0"}
    assert columns_of(DEPLOYMENTS.key, deployment) == expected


def test_long_values_are_cut() -> None:
    """An event's message is cut, so that one object cannot fill the stream."""
    found = columns_of("events.v1.", {"metadata": {}, "message": "x" * 5000})
    assert len(found["message"]) == 1024


@pytest.mark.cluster
async def test_a_real_cluster_is_observed(kube: KubeClient, eventually: Callable[..., Awaitable[Any]]) -> None:
    """Namespaces of a real API server arrive as a list and then as changes."""
    broker = Broker()
    observer = Observer(kube, [NAMESPACES], registry=CollectorRegistry())
    reflector = observer.reflectors[NAMESPACES]
    feed = Feed(NAMESPACES, reflector.store, epoch="e", limit=100)
    observer.listen(NAMESPACES, feed.take)
    task = asyncio.create_task(reflector.run(), name="reflector")
    async with publishing(broker, feed):
        await eventually(lambda: broker.taken and broker.messages()[-1].verb == Wire.LISTED, within=10)
        assert "kube-system" in replayed(broker.messages())
        await kube.create(NAMESPACES, {"metadata": {"name": "observed-test", "labels": {"gems.kubegems.io/tenant": "acme"}}})
        await eventually(lambda: "observed-test" in replayed(broker.messages()), within=5)
        await kube.delete(NAMESPACES, "observed-test")
        await eventually(lambda: any(m.name == "observed-test" and "deleting" in m.columns for m in broker.messages()), within=10)
    task.cancel()
    await asyncio.wait([task])


async def test_a_reader_that_missed_something_gets_a_fresh_list(eventually: Callable[..., Awaitable[Any]]) -> None:
    """Asked to relist, the kind is listed from the copy, numbered on; also when a list is under way, and never before a first one."""
    broker, kind = Broker(), Kind()
    kind.feed.relist()
    await kind.put("a")
    async with publishing(broker, kind.feed):
        await asyncio.sleep(0.02)
        assert broker.taken == []
        await kind.feed.take(LISTED)
        await eventually(lambda: len(broker.taken) == 3, within=5)
        await kind.put("b")
        kind.feed.relist()
        kind.feed.relist()
        await eventually(lambda: broker.messages()[-1].verb == Wire.LISTED and len(broker.taken) >= 7, within=5)
    assert replayed(broker.messages()) == {"a", "b"}
    assert [m.verb for m in broker.messages()].count(Wire.LISTING) == 2
