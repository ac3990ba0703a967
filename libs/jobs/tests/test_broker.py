"""Dispatcher, runner and reconciler over a real NATS: jobs go through, what the broker lost comes again."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from kubegems.jobs.v1 import events_pb2
from libs.bus import Bus, streams
from libs.jobs import Context, Retry, State, dispatch, store
from libs.jobs.dispatch import Dispatcher
from libs.jobs.domain import Order
from libs.jobs.reconcile import Reconciler
from libs.jobs.tests.conftest import Desk
from libs.jobs.tests.test_engine import nothing
from tests.kit.eventually import eventually
from tests.kit.nats import NatsServer


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    made = await Bus.connect(nats_server.url, name="worker", tls=nats_server.tls("worker"), nkey_seed_file=nats_server.seed_file("worker"))
    owner = await Bus.connect(nats_server.url, name="gateway", tls=nats_server.tls(), nkey_seed_file=nats_server.seed_file())
    with contextlib.suppress(Exception):
        await owner.delete_stream(streams.JOBS.name)
    await owner.ensure_stream(streams.JOBS)
    yield made
    await made.close()
    await owner.close()


async def _orders(desk: Desk, count: int) -> list[uuid.UUID]:
    async with desk.database.transaction() as tx:
        made = await store.enqueue_many(tx, [Order(kind="count", target="tenants/a", creator="schedules/x")] * count)
    return [job.id for job in made]


async def test_jobs_go_through_the_broker(desk: Desk, bus: Bus) -> None:
    """300 jobs, two workers, each job once; the stream is empty in the end."""
    runs: list[uuid.UUID] = []

    async def handler(context: Context, _payload: Any) -> None:
        runs.append(context.job.id)

    desk.kind(handler)
    ids = await _orders(desk, 300)
    dispatcher = Dispatcher(desk.database, bus, desk.known, window=50)
    workers = [desk.runner(worker=name, concurrency=20, on_claimed=dispatcher.claimed) for name in ("w1", "w2")]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in (dispatcher.run(), *(worker.run(bus) for worker in workers))]

        async def done() -> None:
            assert await desk.sql("SELECT count(*) FROM jobs.jobs WHERE state = 'SUCCEEDED'") == 300

        await eventually(done, within=30)

        async def empty() -> None:
            assert await bus.stored(streams.JOBS.name) == {}

        await eventually(empty, within=10)
        for task in tasks:
            task.cancel()
    assert sorted(runs) == sorted(ids)


async def test_what_the_broker_lost_is_sent_again_and_what_nobody_waits_for_is_removed(desk: Desk, bus: Bus) -> None:
    """A message on its way is given the time of one comparison; stale, doubled and foreign ones go."""
    desk.kind(nothing)
    lost, kept = await _orders(desk, 2)
    dispatcher, reconciler = Dispatcher(desk.database, bus, desk.known), Reconciler(desk.database, bus)
    assert await dispatcher.once() == 2
    stored = await bus.stored(streams.JOBS.name)
    assert len(stored) == 2
    for sequence, data in stored.items():
        if events_pb2.JobDispatch.FromString(data).job == str(lost):
            await bus.remove(streams.JOBS.name, sequence)
    for data in (b"nonsense", events_pb2.JobDispatch(job=str(kept), attempt=1, dispatch=0).SerializeToString()):
        await bus.publish_bytes("gems.jobs.default", data, type_="x")
    assert await reconciler.once() == (0, 2)
    assert await reconciler.once() == (1, 0)
    assert await dispatcher.once() == 1
    assert await reconciler.once() == (0, 0)
    found = [events_pb2.JobDispatch.FromString(data) for data in (await bus.stored(streams.JOBS.name)).values()]
    assert sorted((m.job, m.dispatch) for m in found) == sorted([(str(kept), 1), (str(lost), 2)])
    assert await desk.sql("SELECT count(*) FROM jobs.jobs WHERE state = $1", State.QUEUED.value) == 2


async def test_a_retry_comes_in_time_however_much_waits(desk: Desk, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """While dispatcher and workers never come to rest, what has waited for its time is let go all the same."""
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.1)
    tries: list[int] = []

    async def again(context: Context, _payload: Any) -> None:
        tries.append(context.job.attempts)
        if len(tries) < 3:
            raise Retry("once more", after=timedelta(seconds=0.01))

    async def endless(context: Context, _payload: Any) -> None:
        if len(tries) < 3:  # the backlog never ends before the retries have come
            async with desk.database.transaction() as tx:
                await store.enqueue_many(tx, [Order(kind="endless", target="tenants/a", creator="schedules/x")])

    desk.kind(again)
    desk.kind(endless, name="endless")
    async with desk.database.transaction() as tx:
        await store.enqueue_many(tx, [Order(kind="endless", target="tenants/a", creator="schedules/x")] * 100)
    await desk.enqueue(creator="schedules/x")
    dispatcher = Dispatcher(desk.database, bus, desk.known, window=20)
    worker = desk.runner(concurrency=10, on_claimed=dispatcher.claimed)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in (dispatcher.run(), worker.run(bus))]

        async def done() -> None:
            assert tries == [1, 2, 3]

        await eventually(done, within=30)
        for task in tasks:
            task.cancel()


async def test_a_worker_runs_no_more_at_a_time_than_it_may(desk: Desk, bus: Bus) -> None:
    """A page of messages has its places before the next is asked for."""
    at_once, most, done = 0, 0, 0

    async def handler(_context: Context, _payload: Any) -> None:
        nonlocal at_once, most, done
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        done += 1

    desk.kind(handler)
    await _orders(desk, 60)
    dispatcher = Dispatcher(desk.database, bus, desk.known, window=60)
    assert await dispatcher.once() == 60
    worker = desk.runner(concurrency=4)
    task = asyncio.ensure_future(worker.run(bus))

    async def ended() -> None:
        assert done == 60

    try:
        await eventually(ended, within=30)
    finally:
        task.cancel()
    assert most == 4
