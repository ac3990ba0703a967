"""The log of attempts: one row for each that has ended, whoever ended it, beside a release that wrote it earlier."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from libs.jobs import Context, Retry, State, claims, ending, keep, store
from libs.jobs.domain import Job
from libs.jobs.tests.conftest import Desk
from libs.jobs.tests.test_engine import nothing
from libs.jobs.tickets import of


async def _log(desk: Desk, job: Job) -> list[tuple[Any, ...]]:
    async with desk.database.transaction() as tx:
        rows = await tx.rows("SELECT fence, attempt, worker, outcome FROM jobs.claims WHERE job = $1 ORDER BY fence", job.id)
    return [tuple(row) for row in rows]


async def _claim(desk: Desk, worker: str) -> None:
    [message] = await desk.messages()
    async with desk.database.transaction() as tx:
        assert await claims.claim_all(tx, of(message), lease=timedelta(seconds=9), worker=worker, known=["count"])


async def test_each_ended_attempt_is_in_the_log_whoever_ended_it(desk: Desk) -> None:
    """A death is there with the worker that died; while an attempt runs, its row of the job says where."""

    async def handler(context: Context, _payload: Any) -> None:
        if context.job.attempts < 3:
            raise Retry("once more")

    desk.kind(handler)
    job = await desk.enqueue(max_attempts=3)
    await _claim(desk, "w0")
    assert await _log(desk, job) == []
    assert await desk.sql("SELECT worker FROM jobs.jobs WHERE id = $1", job.id) == "w0"
    await desk.die(job)
    for _ in range(2):
        await desk.work()
        await desk.due_now()
    assert await _log(desk, job) == [(1, 1, "w0", "WORKER_LOST"), (2, 2, "w1", "QUEUED"), (3, 3, "w1", "SUCCEEDED")]


async def test_attempts_after_a_retry_by_hand_are_counted_and_logged_anew(desk: Desk) -> None:
    """The count begins again, the fence does not, so no row is written over."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise Retry("never works")

    desk.kind(handler)
    job = await desk.enqueue(max_attempts=1)
    await desk.work()
    async with desk.database.transaction() as tx:
        await store.again(tx, job.id)
    await desk.work()
    assert await _log(desk, job) == [(1, 1, "w1", "DEAD"), (2, 1, "w1", "DEAD")]


async def test_a_release_that_logs_an_attempt_at_its_claim_may_run_beside(desk: Desk) -> None:
    """Its row is completed, by the one who ends the attempt or takes the job back."""
    desk.kind(nothing)
    early = "INSERT INTO jobs.claims (job, fence, attempt, worker) VALUES ($1, 1, 1, 'old')"
    dead = await desk.enqueue(max_attempts=1)
    await _claim(desk, "old")
    await desk.sql(early, dead.id)
    await desk.die(dead)
    assert [row[3] for row in await _log(desk, dead)] == ["WORKER_LOST"]
    done = await desk.enqueue()
    await desk.sql(early, done.id)
    await desk.work()
    assert [row[3] for row in await _log(desk, done)] == ["SUCCEEDED"]


async def test_attempts_go_with_their_job(desk: Desk) -> None:
    """Whether its time is over or somebody purges it; those of other jobs stay."""
    desk.kind(nothing, keep=timedelta())
    swept, purged = await desk.enqueue(), await desk.enqueue()
    await desk.work()
    kept = await desk.enqueue(max_attempts=2)
    await _claim(desk, "w0")
    await desk.die(kept)
    everything = store.Seen(everything=True, exact=[], trees=[])
    async with desk.database.transaction() as tx:
        assert await store.purge(tx, everything, limit=1, where="id = $6", args=[purged.id]) == [purged.id]
    assert [len(await _log(desk, job)) for job in (swept, purged, kept)] == [1, 0, 1]
    async with desk.database.transaction() as tx:
        await keep.sweep(tx)
    assert [len(await _log(desk, job)) for job in (swept, purged, kept)] == [0, 0, 1]
    assert (await desk.get(kept)).state is State.QUEUED


async def test_no_crash_comes_between_an_effect_and_its_outcome(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the outcome the effect is not there either; the next attempt leaves the only one."""
    await desk.sql("CREATE TABLE IF NOT EXISTS crash_effects (fence bigint)")

    async def handler(context: Context, _payload: Any) -> None:
        async def effect(tx: Any) -> None:
            await tx.execute("INSERT INTO crash_effects VALUES ($1)", context.job.fence)

        context.effect(effect)

    async def crashes(_tx: Any, _outcomes: Any) -> Any:
        raise RuntimeError("here the worker dies")

    monkeypatch.setattr(claims, "finish", crashes)
    monkeypatch.setattr(ending, "_REFUSED_SECONDS", 0.01)
    desk.kind(handler)
    job = await desk.enqueue()
    [message] = await desk.messages()
    await asyncio.wait_for(desk.runner().handle(message), 10)
    assert await desk.sql("SELECT count(*) FROM crash_effects") == 0
    monkeypatch.undo()
    await desk.die(job)
    await desk.work()
    assert (await desk.get(job)).state is State.SUCCEEDED
    assert await desk.sql("SELECT array_agg(fence) FROM crash_effects") == [2]
