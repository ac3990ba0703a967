"""What is published is stored or refused, what is consumed is consumed once, through restarts of the broker."""

import asyncio
from typing import Any

import pytest
from nats.js.api import RetentionPolicy
from nats.js.manager import JetStreamManager

from kubegems.jobs.v1.events_pb2 import JobDispatch
from libs.bus import Bus, Full, Received, Rejected, streams, subjects
from libs.bus.connection import Address, Connection
from libs.bus.server import Open, prove_closed
from libs.bus.streams import Stream
from libs.faults import Invalid, Unavailable

SUBJECT = subjects.platform("test", "happened")


def a_message(n: int = 1) -> JobDispatch:
    return JobDispatch(job=str(n), attempt=n)


async def take(source: Any, count: int) -> list[Received]:
    """The next messages, gaps left out."""
    found: list[Received] = []
    async with asyncio.timeout(20):
        async for received in source:
            if not received.gap:
                found.append(received)
            if len(found) == count:
                return found
    return found


async def test_publish_is_stored_once_per_id(bus: Bus) -> None:
    """The ack gives the sequence; the same id again is not stored twice; headers tell type and id."""
    await bus.ensure_stream(streams.PLATFORM)
    first = await bus.publish(SUBJECT, a_message(), id="one")
    assert await bus.publish(SUBJECT, a_message(), id="one") == first
    second = await bus.publish(SUBJECT, a_message(2), id="two")
    assert second == first + 1
    got = await take(bus.follow("PLATFORM", after=first - 1), 2)
    assert [(r.id, r.type_name, r.parse(JobDispatch).attempt) for r in got] == [
        ("one", "kubegems.jobs.v1.JobDispatch", 1), ("two", "kubegems.jobs.v1.JobDispatch", 2),
    ]  # fmt: skip


async def test_no_stream_is_told(bus: Bus) -> None:
    """A subject that nothing keeps is refused, not dropped."""
    with pytest.raises(Unavailable, match="no stream takes"):
        await bus.publish(subjects.desired("u"), a_message())


async def test_too_large_is_told(bus: Bus) -> None:
    """What a stream will never take is the caller's mistake, not an outage."""
    await bus.ensure_stream(streams.PLATFORM)
    with pytest.raises(Invalid):
        await bus.publish(SUBJECT, JobDispatch(job="x" * 1_100_000))
    await bus.delete_stream("JOBS")
    await bus.ensure_stream(streams.JOBS)
    with pytest.raises(Invalid, match="too many for the stream"):
        await bus.publish(subjects.jobs("q"), JobDispatch(job="x" * 70_000))


async def test_full_stream_refuses(bus: Bus) -> None:
    """A full work queue refuses, and takes again when worked off."""
    await bus.delete_stream("JOBS")
    await bus.ensure_stream(Stream("JOBS", ("gems.jobs.>",), 2000, 0, work_queue=True, healed=True, max_message=1000))

    async def fill() -> None:
        for n in range(100):
            await bus.publish(subjects.jobs("q"), a_message(n), id=str(n))

    with pytest.raises(Full):
        await fill()
    done = asyncio.Event()

    async def handle(received: Received) -> None:
        done.set()

    worker = asyncio.create_task(bus.consume("JOBS", handle, durable="worker"), name="worker")
    async with asyncio.timeout(10):
        await done.wait()
        while True:
            try:
                await bus.publish(subjects.jobs("q"), a_message(), id="later")
            except Full:
                await asyncio.sleep(0.05)
            else:
                break
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)


async def test_stream_limits_are_brought_up_to_date(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed definition changes the stream; an unchanged one is left alone."""
    stream = streams.cluster("u-limits")
    updated: list[str] = []
    update = JetStreamManager.update_stream

    async def spy(self: Any, config: Any) -> Any:
        updated.append(config.name)
        return await update(self, config)

    monkeypatch.setattr(JetStreamManager, "update_stream", spy)
    for unchanged in (stream, *streams.HUB):
        await bus.delete_stream(unchanged.name)
        await bus.ensure_stream(unchanged)
        await bus.ensure_stream(unchanged)
    assert updated == []
    await bus.ensure_stream(Stream(stream.name, stream.subjects, 1024 * 1024, 60, healed=True))
    assert updated == [stream.name]
    with pytest.raises(Unavailable, match="refused OVERLAP"):
        await bus.ensure_stream(Stream("OVERLAP", stream.subjects, 1024 * 1024, 60))
    info = await (await bus._connection.client(1)).jetstream().stream_info(stream.name)
    assert (info.config.max_bytes, info.config.max_age, info.config.retention) == (1024 * 1024, 60, RetentionPolicy.LIMITS)
    assert stream.name in await bus.streams(streams.CLUSTER_PREFIX)
    await bus.delete_stream(stream.name)
    await bus.delete_stream(stream.name)
    assert stream.name not in await bus.streams()


async def test_hints_and_gaps(bus: Bus, broker: Any) -> None:
    """A subscriber hears hints, and is told of the gap when it reconnects."""
    other = await broker.bus("worker")
    heard = other.subscribe(subjects.desired("u"))
    async with asyncio.timeout(10):
        assert (await anext(heard)).gap
        await bus.hint(subjects.desired("u"), a_message(7))
        assert (await anext(heard)).parse(JobDispatch).attempt == 7
        waiting = asyncio.ensure_future(anext(heard))
        await broker.stop()
        await broker.start()
        assert (await waiting).gap
        await bus.hint(subjects.desired("u"), a_message(8), timeout=10)
        assert (await anext(heard)).parse(JobDispatch).attempt == 8
    await heard.aclose()
    await other.close()


async def test_slow_subscriber_is_told(bus: Bus) -> None:
    """A reader slower than its capacity loses messages and is told so; nothing grows without bound."""
    heard = bus.subscribe(subjects.interest("slow"), capacity=4)
    async with asyncio.timeout(10):
        assert (await anext(heard)).gap
        for n in range(9):
            await bus.hint(subjects.interest("slow"), a_message(n))
        await bus.flush()
        first = await anext(heard)
        assert first.gap
        assert (await anext(heard)).parse(JobDispatch).attempt > 0
    await heard.aclose()


async def test_consumer_outlives_the_broker(bus: Bus, broker: Any) -> None:
    """Everything published before, during and after a restart is handled; failures come again, rejected ones do not."""
    await bus.ensure_stream(streams.NOTICES)
    handled: list[str] = []
    failed: list[str] = []
    complete = asyncio.Event()

    async def handle(received: Received) -> None:
        if received.id == "poison":
            failed.append(received.id)
            raise Rejected("never")
        if received.id == "3" and received.delivered == 1:
            failed.append(received.id)
            raise OSError
        handled.append(received.id)
        if len(set(handled)) == 20:
            complete.set()

    worker = asyncio.create_task(bus.consume("NOTICES", handle, durable="test", concurrency=4, ack_wait=5), name="worker")

    async def publish(id_: str) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    await bus.publish(subjects.notice("x"), a_message(), id=id_, timeout=2)
                except Unavailable:
                    await asyncio.sleep(0.05)
                else:
                    return

    for n in range(10):
        await publish(str(n))
    await publish("poison")
    await broker.stop()
    publishing = asyncio.gather(*(publish(str(n)) for n in range(10, 20)))
    await broker.start()
    await publishing
    async with asyncio.timeout(30):
        await complete.wait()
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert failed.count("poison") == 1
    assert failed.count("3") == 1


async def test_busy_consumer_hoards_nothing(bus: Bus) -> None:
    """Work for which no handler is free stays in the stream, where another process gets it at once."""
    await bus.delete_stream("JOBS")
    await bus.ensure_stream(streams.JOBS)
    stuck, release = asyncio.Event(), asyncio.Event()
    done: list[str] = []
    complete = asyncio.Event()

    async def slow(_received: Received) -> None:
        stuck.set()
        await release.wait()

    async def quick(received: Received) -> None:
        done.append(received.id)
        if len(done) == 8:
            complete.set()

    first = asyncio.create_task(bus.consume("JOBS", slow, durable="jobs", concurrency=2), name="slow worker")
    for n in range(10):
        await bus.publish(subjects.jobs("q"), a_message(n), id=f"hoard-{n}")
    async with asyncio.timeout(20):
        await stuck.wait()
        second = asyncio.create_task(bus.consume("JOBS", quick, durable="jobs", concurrency=2), name="quick worker")
        await complete.wait()
    release.set()
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert len(set(done)) == 8


async def test_follow_is_in_order_through_a_restart(bus: Bus, broker: Any) -> None:
    """A follower sees each message once and in order, though the broker restarts and its consumer is gone."""
    stream = streams.cluster("u-follow")
    await bus.ensure_stream(Stream(stream.name, stream.subjects, 1024 * 1024, 600))
    subject = subjects.observed("u-follow", "", "v1", "pods", "ns")
    for n in range(5):
        await bus.publish(subject, a_message(n))
    seen: list[int] = []
    halfway, complete = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async for received in bus.follow(stream.name, after=0, batch=3):
            assert not received.gap
            seen.append(received.parse(JobDispatch).attempt)
            if len(seen) == 5:
                halfway.set()
            if len(seen) == 10:
                complete.set()

    reader = asyncio.create_task(read(), name="reader")
    async with asyncio.timeout(30):
        await halfway.wait()
        await broker.stop()
        await broker.start()
        for n in range(5, 10):
            await bus.publish(subject, a_message(n), id=f"follow-{n}", timeout=10)
        await complete.wait()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert seen == list(range(10))


async def test_follow_tells_what_it_missed(bus: Bus) -> None:
    """Messages that left the stream before they were read are told as a gap."""
    stream = Stream("CLUSTER_u-gap", (subjects.cluster("u-gap"),), 1024 * 1024, 600)
    await bus.ensure_stream(stream)
    subject = subjects.observed("u-gap", "", "v1", "pods", "ns")
    for n in range(6):
        await bus.publish(subject, a_message(n))
    await (await bus._connection.client(1)).jetstream().purge_stream(stream.name, seq=5)
    source = bus.follow(stream.name, after=2)
    async with asyncio.timeout(10):
        assert (await anext(source)).gap
        assert (await anext(source)).sequence == 5
    await source.aclose()


async def test_away_is_told_soon(broker: Any) -> None:
    """While the broker is away publishing waits its time and fails; afterwards the same bus works."""
    bus = await broker.bus()
    await broker.stop()
    try:
        with pytest.raises(Unavailable) as caught:
            await bus.publish(SUBJECT, a_message(), timeout=0.3)
        assert caught.value.retry_after is not None
    finally:
        await broker.start()
    await bus.publish(SUBJECT, a_message(), timeout=10)
    await bus.close()


async def test_proved_closed(broker: Any) -> None:
    """The rendered configuration lets nobody in without key; the same check finds a broker without authorisation open."""
    await prove_closed(broker.url, broker.tls("gateway"))
    await broker.stop()
    await broker.start(guarded=False)
    try:
        with pytest.raises(Open, match="without key"):
            await prove_closed(broker.url, broker.tls("gateway"))
    finally:
        await broker.stop()
        await broker.start()


async def test_a_swallowed_cancel_keeps_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nats-py swallows one that comes while it connects: closing is over all the same."""
    connecting, swallowed = asyncio.Event(), list[str]()

    async def connect(_self: Connection, _client: Any, _lost: asyncio.Event) -> None:
        connecting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if swallowed:
                raise
            swallowed.append("the first")
            raise OSError("refused") from None

    monkeypatch.setattr(Connection, "_connect", connect)
    connection = Connection(Address("tls://127.0.0.1:1", "closing"))
    await connecting.wait()
    async with asyncio.timeout(10):
        await connection.close()
    assert swallowed
