"""Stops that come at a bad moment: before the task has begun, from within, while a claim is under way, with a database that is away."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from kubegems.jobs.v1 import events_pb2
from libs.faults import Unavailable
from libs.jobs import Context, Retry, State, Step, claims
from libs.jobs.tests.conftest import Desk
from libs.jobs.tests.test_engine import nothing
from libs.jobs.tickets import of
from tests.kit.eventually import eventually


async def test_a_cancel_before_the_handler_has_begun_counts(desk: Desk) -> None:
    """The news of a cancel may come right behind the claim: the handler never runs, and its place is free again."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise AssertionError("must not run")

    desk.kind(handler)
    job = await desk.enqueue()
    [message] = await desk.messages()
    runner = desk.runner()
    [held] = await runner._take(of(message))
    end = held.end()
    runner.cancelled(str(job.id))
    await asyncio.wait_for(end, 5)
    assert ((await desk.get(job)).state, runner.running) == (State.CANCELLED, 0)


async def test_a_handler_that_is_cancelled_from_within_has_failed(desk: Desk) -> None:
    """Something that it waits for was cancelled, by nobody who may: that is a failed attempt, not one for ever."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise asyncio.CancelledError

    desk.kind(handler)
    job = await desk.enqueue(max_attempts=1)
    [message] = await desk.messages()
    await asyncio.wait_for(desk.runner().handle(message), 5)
    dead = await desk.get(job)
    assert (dead.state, dead.attempts) == (State.DEAD, 1)


async def test_a_mistake_of_who_knows_the_rights_is_a_failed_attempt(desk: Desk) -> None:
    """The job is tried again by itself, not by the end of its lease."""
    desk.kind(nothing)
    desk.allowed = KeyError("a mistake with a secret inside")
    job = await desk.enqueue()
    await desk.work()
    waits = await desk.get(job)
    assert (waits.state, waits.attempts, waits.error) == (State.QUEUED, 1, "internal error")


async def test_a_drain_waits_for_a_claim_that_is_under_way(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ours only after the drain began is given back too, before the process ends."""
    desk.kind(nothing)
    job = await desk.enqueue(max_attempts=1)
    [message] = await desk.messages()
    claiming, go, claim_all = asyncio.Event(), asyncio.Event(), claims.claim_all

    async def slow(*args: Any, **more: Any) -> Any:
        claiming.set()
        await go.wait()
        return await claim_all(*args, **more)

    monkeypatch.setattr(claims, "claim_all", slow)
    runner = desk.runner()
    task = asyncio.ensure_future(runner.handle(message))
    await asyncio.wait_for(claiming.wait(), 5)
    drain = asyncio.ensure_future(runner.drain())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(drain), 0.05)
    go.set()
    await asyncio.wait_for(drain, 5)
    back = await desk.get(job)
    assert (back.state, back.attempts) == (State.QUEUED, 0)
    await asyncio.wait_for(task, 5)


async def test_a_heartbeat_outlives_a_database_that_is_away_while_a_handler_does_not_stop(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job is taken from it as soon as the database is there again; the worker's other jobs go on."""
    started, let_go, finish, away = asyncio.Event(), asyncio.Event(), claims.finish, [2]

    async def handler(_context: Context, _payload: Any) -> None:
        started.set()
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    async def refuses(tx: Any, outcomes: Any) -> Any:
        if away[0]:
            away[0] -= 1
            raise Unavailable("the database is away")
        return await finish(tx, outcomes)

    monkeypatch.setattr(claims, "finish", refuses)
    desk.kind(handler, cancel_grace=timedelta())
    runner = desk.runner(heartbeat=0.05)
    job = await desk.enqueue()
    [message] = await desk.messages()
    task, beat = asyncio.ensure_future(runner.handle(message)), asyncio.ensure_future(runner._beat())
    await asyncio.wait_for(started.wait(), 5)
    await desk.cancel(job)
    runner.cancelled(str(job.id))

    async def taken() -> None:
        assert (await desk.get(job)).state is State.CANCELLED

    try:
        await eventually(taken, within=10)
        assert (away, beat.done()) == ([0], False)
    finally:
        let_go.set()
        beat.cancel()
        await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("error", [Unavailable("the database is away"), RuntimeError("a mistake")])
async def test_progress_that_could_not_be_written_is_written_later(desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """With its new lines, and in words that can be stored; nothing of it stops the worker."""
    told, go, progress, fails = asyncio.Event(), asyncio.Event(), claims.progress, [True]

    async def handler(context: Context, _payload: Any) -> None:
        context.progress(33, "a file named \udcff")
        context.log("half of a pair: \ud800")
        told.set()
        await go.wait()

    async def once(tx: Any, reports: Any) -> Any:
        if fails.pop():
            fails.append(False)
            raise error
        fails.append(False)
        return await progress(tx, reports)

    monkeypatch.setattr(claims, "progress", once)
    desk.kind(handler)
    runner = desk.runner()
    job = await desk.enqueue()
    [message] = await desk.messages()
    task, flush = asyncio.ensure_future(runner.handle(message)), asyncio.ensure_future(runner._flush())
    await asyncio.wait_for(told.wait(), 5)

    async def written() -> None:
        assert (await desk.get(job)).message == "a file named ?"

    try:
        await eventually(written, within=10)
        assert not flush.done()
    finally:
        go.set()
        flush.cancel()
        await asyncio.wait_for(task, 5)
    async with desk.database.transaction() as tx:
        moves = [events_pb2.JobMoved.FromString(r["payload"]) for r in await tx.rows("SELECT payload FROM jobs.outbox ORDER BY seq")]
    assert [list(move.log_lines) for move in moves] == [[], [], ["half of a pair: ?"], []]


async def test_an_error_that_cannot_be_stored_as_it_is_changes_no_outcome(desk: Desk) -> None:
    """Words of another program may hold anything; a retry stays a retry."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise Retry("it said \x00 and \udcff")

    desk.kind(handler)
    desk.kind(steps=(Step("one", handler),), name="steps")
    made = [await desk.enqueue(), await desk.enqueue("steps")]
    await desk.work()
    for job in made:
        found = await desk.get(job)
        assert (found.state, found.error) == (State.QUEUED, "it said  and ?")


@pytest.mark.parametrize("write", ["hold", "progress"])
async def test_writes_of_many_jobs_wait_in_order(desk: Desk, write: str) -> None:
    """Whoever waits for a job holds none with a higher id, so a worker's statements cannot wait for each other."""
    desk.kind(nothing)
    for _ in range(2):
        await desk.enqueue()
    asked = [ticket for message in await desk.messages() for ticket in of(message)]
    async with desk.database.transaction() as tx:
        held = [one.job for one in await claims.claim_all(tx, asked, lease=timedelta(seconds=9), worker="w", known=["count"])]
    first, last = sorted(held, key=lambda job: job.id)
    await desk.sql("UPDATE jobs.jobs SET percent = 1 WHERE id = $1", first.id)  # its row lies behind the other's now
    await desk.sql("ANALYZE jobs.jobs")  # for a planner that goes through the table

    async def works() -> None:
        async with desk.database.transaction() as tx:
            if write == "hold":
                await claims.hold(tx, [last, first], timedelta(seconds=9))
            else:
                await claims.progress(tx, [claims.Report(last), claims.Report(first)])

    async with asyncio.TaskGroup() as group, desk.database.transaction() as tx:
        await tx.execute("SELECT 1 FROM jobs.jobs WHERE id = $1 FOR UPDATE", first.id)
        task = group.create_task(works())
        while not await tx.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            assert not task.done()
            await asyncio.sleep(0.01)
        await tx.execute("SELECT 1 FROM jobs.jobs WHERE id = $1 FOR UPDATE NOWAIT", last.id)
