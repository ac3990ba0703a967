"""The stream as a subscriber sees it, with a gateway double whose grants a test can change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest

from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.identity.v1.access_service_pb2 import (
    GrantedScope,
    SessionGrants,
    WatchGrantsRequest,
    WatchGrantsResponse,
    WatchSessionsResponse,
)
from kubegems.jobs.v1.events_pb2 import JobMoved
from kubegems.messages.v1 import message_service_pb2
from kubegems.messages.v1.event_pb2 import Change, Event, Freshness
from libs.crypt.box import Box
from libs.rpc import call as rpc
from services.msgbus import api, bodies
from services.msgbus import grants as rights
from services.msgbus import stream as streaming
from services.msgbus.api import Messages
from services.msgbus.bodies import Bodies
from services.msgbus.domain import Environment, GrantsSilent, SessionEnded, TooManyStreams
from services.msgbus.hub import Hub
from services.msgbus.sending import Pair
from services.msgbus.subscriber import Item
from services.msgbus.tests.test_hub import ACME, GLOBEX, hub, observed


class Gateway:
    """Says what the test tells it to say, of the session that was added last."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[WatchGrantsResponse] = asyncio.Queue()
        self._added = asyncio.Event()
        self._key = ("", "")

    def grant(self, *environments: Environment, jobs: Sequence[str] = ()) -> None:
        scopes = [GrantedScope(name=e.name, cluster=e.cluster, cluster_uid=e.cluster_uid, namespace=e.namespace) for e in environments]
        self.messages.put_nowait(WatchGrantsResponse(kind=WatchGrantsResponse.SNAPSHOT, scopes=scopes, job_scopes=jobs))

    async def watch(self) -> AsyncIterator[WatchSessionsResponse]:
        self._added.clear()
        yield WatchSessionsResponse(watch="w")
        await self._added.wait()
        while True:
            grants = await self.messages.get()
            of = WatchGrantsRequest(username=self._key[0], session=self._key[1])
            yield WatchSessionsResponse(sessions=[SessionGrants(of=of, grants=grants)])

    async def update(self, watch: str, add: Sequence[rights.Key], remove: Sequence[rights.Key]) -> None:
        for key in add:
            self._key = key
            self._added.set()


class Open:
    """One subscription."""

    def __init__(self, messages: Messages, **request: Any) -> None:
        call = rpc.Call(method=cast("Any", None), caller=rpc.Caller(kind=rpc.Kind.USER, id="dev", session="s1"))
        events = messages.Subscribe(message_service_pb2.SubscribeRequest(**request), call)
        self.events = _each(cast("AsyncGenerator[list[bytes], None]", events))

    async def next(self) -> Event:
        """The next event that is not only the stream's name."""
        async with asyncio.timeout(8):
            while (event := await anext(self.events)).kind == Event.SUBSCRIBED:
                self.name = event.subscription
            return event

    async def close(self) -> None:
        await self.events.aclose()


async def _each(parts: AsyncGenerator[list[bytes], None]) -> AsyncGenerator[Event, None]:
    async with aclosing(parts):
        async for part in parts:
            for raw in part:
                yield Event.FromString(raw)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def on() -> Hub:
    return hub()


def serve(on: Hub, gateway: Gateway, streams: int = 3) -> Messages:
    return Messages(on, gateway, Box(b"k" * 32), queue_size=50, streams_per_user=streams)


async def test_a_snapshot_then_changes_without_a_gap(on: Hub, gateway: Gateway) -> None:
    """What is there comes first, then SNAPSHOT_END, then what changes; a snapshot larger than the queue is whole."""
    for i in range(200):
        on.take("c1", observed(3 + i, "acme-shop-dev", f"web{i}"))
    gateway.grant(ACME)
    stream = Open(serve(on, gateway), snapshot=True)
    names = {(await stream.next()).change.object for _ in range(200)}
    assert names == {f"web{i}" for i in range(200)}
    assert (await stream.next()).kind == Event.SNAPSHOT_END
    on.take("c1", observed(300, "acme-shop-dev", "late"))
    kinds = [(await stream.next()).kind for _ in range(2)]
    assert Event.CHANGE in kinds
    await stream.close()


async def test_resuming_brings_what_was_missed_once(on: Hub, gateway: Gateway) -> None:
    """After a break the token of the last event brings exactly what came between."""
    gateway.grant(ACME)
    messages = serve(on, gateway)
    stream = Open(messages)
    first = asyncio.create_task(stream.next())
    while not len(on):
        await asyncio.sleep(0)
    on.take("c1", observed(3, "acme-shop-dev", "web"))
    token = (await first).resume_token
    await stream.close()
    assert len(on) == 0
    on.take("c1", observed(4, "acme-shop-dev", "missed"))
    on.take("c1", observed(5, "globex-x-dev", "foreign"))
    gateway.grant(ACME)
    stream = Open(messages, resume_token=token)
    missed = await stream.next()
    assert (missed.change.object, missed.freshness.source) == ("missed", Freshness.REPLAY)
    assert len(on._all) == 1
    await stream.close()
    gateway.grant(ACME)
    stream = Open(messages, resume_token="forged")
    assert (await stream.next()).resync.reason == "RESUME_EXPIRED"
    await stream.close()


async def test_a_lost_scope_is_told_and_a_gained_one_sends_what_is_there(on: Hub, gateway: Gateway) -> None:
    """Rights change while the stream is open."""
    on.take("c1", observed(3, "globex-x-dev", "api"))
    gateway.grant(ACME)
    stream = Open(serve(on, gateway))
    first = asyncio.create_task(stream.next())
    while not len(on):
        await asyncio.sleep(0)
    gateway.grant(GLOBEX)
    seen = [await first, await stream.next(), await stream.next()]
    assert {(e.kind, e.scope or e.change.object) for e in seen} == {
        (Event.SCOPE_REVOKED, ACME.name),
        (Event.CHANGE, "api"),
        (Event.SNAPSHOT_END, GLOBEX.name),
    }
    await stream.close()


async def test_the_end_of_the_session_ends_the_stream(on: Hub, gateway: Gateway) -> None:
    """An ended session is UNAUTHENTICATED at once."""
    gateway.grant(ACME)
    stream = Open(serve(on, gateway))
    waiting = asyncio.create_task(stream.next())
    while not len(on):
        await asyncio.sleep(0)
    gateway.messages.put_nowait(WatchGrantsResponse(kind=WatchGrantsResponse.ENDED))
    with pytest.raises(SessionEnded):
        await waiting
    assert len(on) == 0


async def test_silence_about_rights_ends_the_stream(on: Hub, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without confirmation nothing is sent any more."""
    monkeypatch.setattr(rights, "SILENCE_SECONDS", 0.2)
    gateway.grant(ACME)
    stream = Open(serve(on, gateway))
    with pytest.raises(GrantsSilent):
        await stream.next()


async def test_one_user_cannot_open_streams_without_end(on: Hub, gateway: Gateway) -> None:
    """The limit is told with its number."""
    messages = serve(on, gateway, streams=1)
    gateway.grant(ACME)
    stream = Open(messages, snapshot=True)
    assert (await stream.next()).kind == Event.SNAPSHOT_END
    async with aclosing(Open(messages).events) as second:
        with pytest.raises(TooManyStreams, match="1 streams"):
            await anext(second)
    await stream.close()


async def test_a_narrow_snapshot_waits_for_nothing(on: Hub, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many objects are there that were not asked for, they do not hold the one back that was."""
    monkeypatch.setattr(api, "TICK_SECONDS", 3600.0)  # nothing but the stream itself moves on
    for i in range(500):
        on.take("c1", observed(3 + i, "acme-shop-dev", f"web{i}"))
    gateway.grant(ACME)
    stream = Open(serve(on, gateway), snapshot=True, selectors=[message_service_pb2.Selector(object="web499")])
    assert (await stream.next()).change.object == "web499"
    assert (await stream.next()).kind == Event.SNAPSHOT_END
    await stream.close()


async def test_what_one_subscriber_alone_is_told_is_merged_into_what_all_are_sent(on: Hub, gateway: Gateway) -> None:
    """Two share an event's bytes; the one that knows less than the other sees its own verb, and its own body."""

    async def ask(cluster: str, user: str, path: str) -> tuple[int, bytes]:
        return 200, b'{"kind":"Pod"}'

    gateway.grant(ACME)
    messages = Messages(on, gateway, Box(b"k" * 32), queue_size=50, streams_per_user=3, bodies=Bodies(ask))
    labelled = message_service_pb2.Selector(labels={"app": "web"}, bodies=True)
    streams = [Open(messages), Open(messages, selectors=[labelled])]
    firsts = [asyncio.create_task(stream.next()) for stream in streams]
    while len(on) < len(streams):
        await asyncio.sleep(0)
    plain = observed(3, "acme-shop-dev", "web")
    plain.labels.clear()
    on.take("c1", plain)
    before = await firsts[0]
    assert before.change.verb == Change.ADDED
    change = observed(4, "acme-shop-dev", "web")
    change.labels["app"] = "web"
    on.take("c1", change)
    one, other = await streams[0].next(), await firsts[1]
    assert (one.change.verb, one.change.body) == (Change.MODIFIED, b"")
    assert (other.change.verb, other.change.body) == (Change.ADDED, b'{"kind":"Pod"}')
    for event in (one, other):
        assert (event.change.object, event.change.labels["app"], event.freshness.source) == ("web", "web", Freshness.LIVE)
        assert event.HasField("send_time")
    for stream in streams:
        await stream.close()


async def test_a_quiet_stream_beats(on: Hub, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing happens a heartbeat comes, within the bound that the contract names."""
    assert streaming.HEARTBEAT_SECONDS + streaming.TICK_SECONDS <= 15
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.2)
    gateway.grant(ACME)
    stream = Open(serve(on, gateway))
    beats = [await stream.next() for _ in range(2)]
    assert {beat.kind for beat in beats} == {Event.HEARTBEAT}
    assert {beat.subscription for beat in beats} == {stream.name}
    await stream.close()


async def test_what_is_sent_tells_how_fresh_it_is(on: Hub, gateway: Gateway) -> None:
    """Source and both ages: of the change by the hub's clock, of the cluster since it was last heard of."""
    old = observed(3, "acme-shop-dev", "web")
    old.observe_time.FromSeconds(int(time.time()) - 60)
    on.take("c1", old)
    gateway.grant(ACME)
    stream = Open(serve(on, gateway), snapshot=True)
    shown = (await stream.next()).freshness
    assert (await stream.next()).kind == Event.SNAPSHOT_END
    new = observed(4, "acme-shop-dev", "web")
    new.observe_time.GetCurrentTime()
    on.take("c1", new)
    live = (await stream.next()).freshness
    assert (shown.source, live.source) == (Freshness.SNAPSHOT, Freshness.LIVE)
    assert 59 <= shown.age.ToTimedelta().total_seconds() < 90
    assert live.age.ToTimedelta().total_seconds() < 30
    assert all(fresh.HasField("cluster_age") and fresh.cluster_age.ToTimedelta().total_seconds() < 30 for fresh in (shown, live))
    await stream.close()


def large(counter: int, name: str) -> ObservedChange:
    """A change of which few make one write."""
    found = observed(counter, "acme-shop-dev", name)
    found.columns["message"] = "x" * 40_000
    return found


async def frozen(on: Hub, messages: Messages) -> Open:
    """A stream whose reader has stopped after the first of many events that were taken out together."""
    stream = Open(messages, jobs=True)
    first = asyncio.create_task(stream.next())
    while not len(on):
        await asyncio.sleep(0)
    for counter in range(3, 9):
        on.take("c1", large(counter, f"web{counter}"))
    on.job_moved(JobMoved(name="jobs/1", target=ACME.name))
    assert (await first).change.object == "web3"
    return stream


async def test_nothing_goes_to_an_ended_session_however_much_was_taken_out_for_it(on: Hub, gateway: Gateway) -> None:
    """A reader that had stopped gets what was on its way already, then the end."""
    gateway.grant(ACME)
    stream = await frozen(on, serve(on, gateway))
    gateway.messages.put_nowait(WatchGrantsResponse(kind=WatchGrantsResponse.ENDED))
    while not gateway.messages.empty():
        await asyncio.sleep(0.01)
    assert (await stream.next()).change.object == "web4"
    with pytest.raises(SessionEnded):
        await stream.next()


async def test_what_was_taken_out_is_held_back_when_the_rights_to_it_are_lost(on: Hub, gateway: Gateway) -> None:
    """Objects and jobs; and no token claims that they were sent."""
    gateway.grant(ACME, jobs=(ACME.name,))
    stream = await frozen(on, serve(on, gateway))
    gateway.grant(GLOBEX)
    while not gateway.messages.empty():
        await asyncio.sleep(0.01)
    assert (await stream.next()).change.object == "web4"
    after = [await stream.next() for _ in range(3)]
    assert [(e.kind, e.scope or e.resync.scope) for e in after] == [
        (Event.SCOPE_REVOKED, ACME.name),
        (Event.RESYNC, "jobs"),
        (Event.SNAPSHOT_END, GLOBEX.name),
    ]
    await stream.close()


async def test_a_cluster_that_does_not_answer_costs_its_own_bodies_alone(
    on: Hub, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told as missing in bounded time however many there are, few are in memory at once, and another's come."""
    monkeypatch.setattr(bodies, "_SECONDS", 1.0)
    under_way = most = 0

    async def ask(cluster: str, user: str, path: str) -> tuple[int, bytes]:
        nonlocal under_way, most
        if cluster == "clusters/local":
            under_way += 1
            most = max(most, under_way)
            try:
                await asyncio.Event().wait()
            finally:
                under_way -= 1
        return 200, b"{}"

    fetch = Bodies(ask)
    slow = [_wanting(ACME, "clusters/local", f"web{i}") for i in range(40)]
    quick = [_wanting(ACME, "clusters/other", "api")]
    waiting = asyncio.create_task(fetch.add("dev", slow))
    await asyncio.sleep(0)
    await fetch.add("dev", quick)
    await waiting
    assert {own.change.body_missing for _, own in slow} == {"UNAVAILABLE"}
    assert (quick[0][1].change.body, most, under_way) == (b"{}", bodies.AT_ONCE, 0)
    assert [len(some) for some in bodies.pieces(slow)] == [16, 16, 8]


def _wanting(environment: Environment, cluster: str, name: str) -> Pair:
    event = Event(kind=Event.CHANGE, change=Change(verb=Change.ADDED, cluster=cluster, resource="pods", version="v1", object=name))
    return Item(event, environment.place, bodies=True), Event()
