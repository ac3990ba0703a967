"""What may go into the stream: order, fairness, keys, kinds, pauses, delays, and a long backlog."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libs.jobs import Context, State, claims, queues, rows, store, window
from libs.jobs.domain import Order
from libs.jobs.tests.conftest import Desk
from libs.jobs.tests.test_engine import nothing


async def _flood(desk: Desk, tenant: str, count: int, **more: Any) -> list[uuid.UUID]:
    orders = [Order(kind="count", target=f"tenants/{tenant}", creator="schedules/x", **more) for _ in range(count)]
    async with desk.database.transaction() as tx:
        return [job.id for job in await store.enqueue_many(tx, orders)]


async def test_the_window_bounds_what_is_under_way(desk: Desk) -> None:
    """However long the backlog is, only `window` messages are in the queue."""
    desk.kind(nothing)
    await _flood(desk, "a", 7)
    assert len(await desk.messages(5)) == 5
    assert await desk.messages(5) == []


async def test_a_flood_of_one_tenant_does_not_keep_others_waiting(desk: Desk) -> None:
    """Tenants take turns, and who has much under way already waits for who has little."""
    desk.kind(nothing)
    flood = set(await _flood(desk, "big", 500))
    small = set(await _flood(desk, "small", 3))
    first = {uuid.UUID(m.job) for m in await desk.messages(8)}
    assert len(first & small) == 3
    late = set(await _flood(desk, "late", 10))
    next_ones = {uuid.UUID(m.job) for m in await desk.messages(14)}
    assert len(next_ones & late) >= 5
    assert len(next_ones & flood) <= 1


async def test_a_higher_priority_goes_first_within_a_tenant_only(desk: Desk) -> None:
    """Nobody can overtake another tenant by calling his own work urgent."""
    desk.kind(nothing)
    await _flood(desk, "a", 5)
    [urgent] = await _flood(desk, "a", 1, priority=9)
    other = await _flood(desk, "b", 1)
    first = [uuid.UUID(m.job) for m in await desk.messages(2)]
    assert set(first) == {urgent, other[0]}


async def test_a_delayed_job_waits_for_its_time(desk: Desk) -> None:
    """`run_time` in the future: not sent before, sent then."""
    desk.kind(nothing)
    job = await desk.enqueue(run_time=datetime.now(UTC) + timedelta(hours=2))
    assert await desk.messages() == []
    assert (await desk.get(job)).waits == "TIME"
    await desk.clock(7300)
    assert len(await desk.messages()) == 1


async def test_one_job_per_concurrency_key_runs_at_a_time(desk: Desk) -> None:
    """The others wait with that reason, in order, and go on when the first has ended, also when its worker died."""
    running: list[str] = []

    async def handler(context: Context, _payload: Any) -> None:
        running.append(str(context.job.id))
        assert await desk.sql("SELECT count(*) FROM jobs.jobs WHERE state = 'RUNNING' AND concurrency_key = 'k'") == 1

    desk.kind(handler)
    ids = [str((await desk.enqueue(concurrency_key="k")).id) for _ in range(4)]
    [first] = await desk.messages()
    async with desk.database.transaction() as tx:
        [held] = await claims.claim(
            tx, [(uuid.UUID(first.job), first.dispatch)], lease=timedelta(seconds=9), worker="w", known=["count"], keyed=True
        )
    assert await desk.messages() == []
    assert await desk.sql("SELECT count(*) FROM jobs.jobs WHERE waits = 'KEY'") == 3
    await desk.die(held.job)
    await desk.work()
    assert running == ids


async def test_two_messages_of_one_key_cannot_both_claim(desk: Desk) -> None:
    """Even if both were sent, the database lets one run; the other waits."""
    started = asyncio.Event()

    async def handler(_context: Context, _payload: Any) -> None:
        started.set()
        await asyncio.sleep(0.3)

    desk.kind(handler)
    await desk.enqueue(concurrency_key="k")
    [one] = await desk.messages()
    second = await desk.enqueue(concurrency_key="k")
    dispatch = await desk.sql("UPDATE jobs.jobs SET dispatch = 7, dispatch_time = now() WHERE id = $1 RETURNING dispatch", second.id)
    two = type(one)(job=str(second.id), attempt=1, dispatch=dispatch)
    runner = desk.runner()
    task = asyncio.ensure_future(runner.handle(one))
    await started.wait()
    await runner.handle(two)
    assert ((await desk.get(second)).state, (await desk.get(second)).waits) == (State.QUEUED, "KEY")
    await task
    await desk.work()
    assert (await desk.get(second)).state is State.SUCCEEDED


async def test_a_kind_that_no_worker_knows_waits_with_that_reason(desk: Desk) -> None:
    """A handler removed in this release, or not yet here, strands no job: it waits until a worker comes that knows it."""
    desk.kind(nothing)
    job = await desk.enqueue("from-the-future")
    assert await desk.messages() == []
    assert ((await desk.get(job)).state, (await desk.get(job)).waits) == (State.QUEUED, "KIND")
    # a newer dispatcher sends it, an older worker gets the message: it gives the job back unharmed
    [message] = await desk.messages(known=["count", "from-the-future"])
    await desk.runner().handle(message)
    given_back = await desk.get(job)
    assert (given_back.state, given_back.waits, given_back.attempts) == (State.QUEUED, "KIND", 0)
    desk.kind(nothing, name="from-the-future")
    await desk.work()
    assert (await desk.get(job)).state is State.SUCCEEDED


async def test_nothing_starts_in_a_paused_queue(desk: Desk) -> None:
    """Neither what waits nor what is in the stream already; after a resume both go on."""
    desk.kind(nothing)
    job, second = await desk.enqueue(), await desk.enqueue()
    [message] = await desk.messages(1)
    async with desk.database.transaction() as tx:
        assert await queues.pause(tx, "default", "users/root")
        assert not await queues.pause(tx, "no-such", "users/root")
    await desk.runner().handle(message)
    assert (await desk.get(job)).state is State.QUEUED
    assert await desk.messages() == []
    async with desk.database.transaction() as tx:
        [figures] = await queues.figures(tx)
        assert (figures.paused, figures.pauser, figures.ready) == (True, "users/root", 2)
        await queues.resume(tx, "default")
    await desk.work()
    assert {(await desk.get(j)).state for j in (job, second)} == {State.SUCCEEDED}


async def test_a_message_that_was_replaced_may_not_claim(desk: Desk) -> None:
    """A message believed lost is sent again under a new number; the old one is refused if it turns up."""
    desk.kind(nothing)
    job = await desk.enqueue()
    [old] = await desk.messages()
    assert await desk.messages() == []
    await desk.sql("UPDATE jobs.jobs SET dispatch_time = NULL")
    [new] = await desk.messages()
    assert new.dispatch == old.dispatch + 1
    await desk.runner().handle(old)
    assert (await desk.get(job)).state is State.QUEUED
    await desk.runner().handle(new)
    assert (await desk.get(job)).state is State.SUCCEEDED


async def test_two_dispatchers_take_turns(desk: Desk) -> None:
    """Together they send each job once and never more than the window."""
    desk.kind(nothing)
    await _flood(desk, "a", 50)
    found = await asyncio.gather(*(desk.messages(20) for _ in range(4)))
    sent = [m.job for part in found for m in part]
    assert len(sent) == len(set(sent)) == 20


async def test_jobs_of_one_key_do_not_block_a_tenants_others(desk: Desk) -> None:
    """However many wait for a key, what waits for none is found."""
    desk.kind(nothing)
    await _flood(desk, "a", 300, concurrency_key="k")
    [free] = await _flood(desk, "a", 1)
    seen: set[str] = set()
    for _ in range(40):
        seen |= {m.job for m in await desk.messages(20)}
        if str(free) in seen:
            break
    assert str(free) in seen
    assert len(seen) == 2


async def test_an_order_placed_while_the_clock_was_ahead_does_not_wait_for_that_time(desk: Desk) -> None:
    """Only a time that was asked for is waited for."""
    desk.kind(nothing)
    await desk.clock(3 * 3600)
    await desk.enqueue()
    asked = await desk.enqueue(run_time=datetime.now(UTC) + timedelta(hours=5))
    [message] = await desk.messages()
    await desk.clock(0)
    await desk.runner().handle(message)
    assert await desk.sql("SELECT count(*) FROM jobs.jobs WHERE waits = 'TIME'") == 2
    async with desk.database.transaction() as tx:
        await window.clamp(tx, timedelta(seconds=15))
    assert len(await desk.messages()) == 1
    assert (await desk.get(asked)).waits == "TIME"


@pytest.mark.parametrize(("jump", "expected"), [(7200, 1), (-7200, 1)])
async def test_a_clock_that_jumps_loses_nothing(desk: Desk, jump: float, expected: int) -> None:
    """After a jump a retry is at most an hour away, whichever way the clock went, and a lease never lasts longer than meant."""
    desk.kind(nothing)
    job = await desk.enqueue()
    await desk.sql(
        "UPDATE jobs.jobs SET run_time = jobs.clock() + interval '30 minutes', waits = 'TIME', attempts = 1 WHERE id = $1", job.id
    )
    await desk.clock(jump)
    async with desk.database.transaction() as tx:
        await window.clamp(tx, timedelta(seconds=15))
    assert len(await desk.messages()) == expected
    assert rows.SCHEMA == "jobs"
