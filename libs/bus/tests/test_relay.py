"""The relay loses nothing and doubles nothing, whatever is restarted under it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kubegems.jobs.v1.events_pb2 import JobDispatch
from libs.bus import Bus, streams, subjects
from libs.bus.relay import Relay
from libs.bus.streams import Stream
from libs.pg import Database, outbox

SUBJECT = subjects.platform("test", "happened")


@pytest.fixture(scope="module")
async def db(database: Any) -> AsyncIterator[Database]:
    """A schema with an outbox."""
    found = await Database.connect(database.dsn, application_name="test")
    async with found.transaction() as tx:
        await tx.execute("create schema shop")
        await tx.execute(outbox.create_outbox("shop"))
    yield found
    await found.close()


@pytest.fixture
async def relay(db: Database, bus: Bus) -> AsyncIterator[asyncio.Task[None]]:
    """A relay at work, on an empty outbox and empty streams."""
    async with db.transaction() as tx:
        await tx.execute("truncate shop.outbox")
    for stream in streams.HUB:
        await bus.delete_stream(stream.name)
        await bus.ensure_stream(stream)
    task = asyncio.create_task(Relay(db, bus, ["shop"]).run(), name="relay")
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def write(db: Database, n: int, subject: str = SUBJECT) -> uuid.UUID:
    async with db.transaction() as tx:
        return await outbox.publish(tx, "shop", subject, JobDispatch(job=str(n), attempt=n))


async def unpublished(db: Database) -> int:
    async with db.transaction(readonly=True) as tx:
        return int(await tx.value("select count(*) from shop.outbox where published is null"))


async def stored(bus: Bus, count: int, stream: str = "PLATFORM") -> list[tuple[str, int]]:
    found = []
    async with asyncio.timeout(20):
        async for received in bus.follow(stream, after=0):
            found.append((received.id, received.parse(JobDispatch).attempt))
            if len(found) == count:
                break
    info = await (await bus._connection.client(5)).jetstream().stream_info(stream)
    assert info.state.messages == count
    return found


async def test_committed_rows_are_published_in_order(db: Database, bus: Bus, relay: Any, eventually: Any) -> None:
    """Rows come out under their own ids in the order of writing, soon; what was rolled back never does."""
    ids = [str(await write(db, n)) for n in range(5)]

    async def fails() -> None:
        async with db.transaction() as tx:
            await outbox.publish(tx, "shop", SUBJECT, JobDispatch(attempt=99))
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    assert await stored(bus, 5) == list(zip(ids, range(5), strict=True))

    async def marked() -> bool:
        return await unpublished(db) == 0

    await eventually(marked, within=2, what="outbox empty")


async def test_broker_restarted_midway(db: Database, bus: Bus, relay: Any, broker: Any, eventually: Any) -> None:
    """Rows written before, while the broker is down, and after: all stored, each once, in order."""
    ids = []
    for n in range(300):
        ids.append(str(await write(db, n)))
        if n == 100:
            await broker.stop()
        if n == 200:
            await broker.start()

    async def marked() -> bool:
        return await unpublished(db) == 0

    await eventually(marked, within=20, what="outbox empty after a restart")
    assert await stored(bus, 300) == list(zip(ids, range(300), strict=True))


async def test_crash_between_ack_and_mark(db: Database, bus: Bus, relay: Any, eventually: Any) -> None:
    """Rows that were published but not marked are published again, and the stream keeps one of each."""
    ids = [str(await write(db, n)) for n in range(10)]

    async def marked() -> bool:
        return await unpublished(db) == 0

    await eventually(marked, within=5)
    async with db.transaction() as tx:
        await tx.execute("update shop.outbox set published = null")
    await eventually(marked, within=5, what="published again")
    assert await stored(bus, 10) == list(zip(ids, range(10), strict=True))


async def test_database_connection_lost(db: Database, bus: Bus, relay: Any, connection: Any, eventually: Any) -> None:
    """The relay's connection cut, its lock with it: it takes up again and nothing is lost."""
    ids = [str(await write(db, 0))]
    await stored(bus, 1)
    await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'test relay%'")
    ids.append(str(await write(db, 1)))
    assert [id_ for id_, _ in await stored(bus, 2)] == ids


async def test_two_relays_share_nothing(db: Database, bus: Bus, relay: Any, eventually: Any) -> None:
    """A second relay waits for the first and takes over when it goes."""
    second = asyncio.create_task(Relay(db, bus, ["shop"]).run(), name="second relay")
    await write(db, 0)
    await stored(bus, 1)
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    await write(db, 1)
    await stored(bus, 2)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_a_full_lane_blocks_only_itself(db: Database, bus: Bus, relay: Any, eventually: Any) -> None:
    """A work queue that refuses does not hold up platform facts; it is drained when there is room again."""
    await bus.ensure_stream(Stream("JOBS", ("gems.jobs.>",), 1000, 0, work_queue=True, healed=True, max_message=500))
    for n in range(20):
        await write(db, n, subjects.jobs("q"))
    await write(db, 7)
    assert [n for _, n in await stored(bus, 1)] == [7]
    assert await unpublished(db) > 0
    await bus.ensure_stream(streams.JOBS)

    async def marked() -> bool:
        return await unpublished(db) == 0

    await eventually(marked, within=15, what="lane drained")
    info = await (await bus._connection.client(5)).jetstream().stream_info("JOBS")
    assert info.state.messages == 20


async def test_a_row_that_is_never_taken_lets_others_pass(db: Database, bus: Bus, relay: Any, eventually: Any) -> None:
    """A message too large for its stream stays unpublished, for someone to look at; those behind it go out."""
    async with db.transaction() as tx:
        await outbox.publish(tx, "shop", subjects.jobs("q"), JobDispatch(job="x" * 70_000))
    for n in range(3):
        await write(db, n, subjects.jobs("q"))

    async def passed() -> bool:
        return await unpublished(db) == 1

    await eventually(passed, within=10, what="others pass")


async def test_hints_go_out_and_are_marked(db: Database, bus: Bus, relay: Any, eventually: Any) -> None:
    """A hint in the outbox reaches a listener and needs no stream."""
    heard = bus.subscribe(subjects.desired("u"))
    async with asyncio.timeout(10):
        assert (await anext(heard)).gap
        id_ = await write(db, 3, subjects.desired("u"))
        assert (await anext(heard)).id == str(id_)
    await heard.aclose()

    async def marked() -> bool:
        return await unpublished(db) == 0

    await eventually(marked, within=5)


async def test_old_rows_go(db: Database, bus: Bus, relay: Any, eventually: Any) -> None:
    """Published rows older than a day go; younger and unpublished ones stay."""
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    for n in range(3):
        await write(db, n)
    async with db.transaction() as tx:
        by_row = "update shop.outbox set published = now() - make_interval(hours => $2) where payload = $1"
        await tx.execute(by_row, JobDispatch(job="0").SerializeToString(), 25)
        await tx.execute(by_row, JobDispatch(job="1", attempt=1).SerializeToString(), 1)
    again = asyncio.create_task(Relay(db, bus, ["shop"]).run(), name="relay again")

    async def swept() -> bool:
        async with db.transaction() as tx:
            return bool(await tx.value("select count(*) from shop.outbox") == 2)

    await eventually(swept, within=10, what="old row gone")
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
