"""Running jobs: cancel before and during, steps, drain, lost leases, handlers that do not stop."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import struct_pb2

from libs.jobs import Context, GiveUp, Retry, State, Step, claims, steps, store
from libs.jobs.runner import Runner
from libs.jobs.tests.conftest import Desk
from libs.jobs.tests.test_engine import nothing


async def _running(desk: Desk, runner: Runner, started: asyncio.Event) -> asyncio.Future[None]:
    [message] = await desk.messages()
    task = asyncio.ensure_future(runner.handle(message))
    await asyncio.wait_for(started.wait(), 5)
    return task


class Sleeper:
    """A handler that sleeps until it is stopped, and cleans up."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cleaned: list[bool] = []

    async def __call__(self, context: Context, _payload: Any) -> None:
        self.started.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.cleaned.append(context.cancel_requested)


async def test_a_waiting_job_is_cancelled_at_once(desk: Desk) -> None:
    """Before it runs nobody has to be asked, and its message finds nothing to do."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise AssertionError("must not run")

    desk.kind(handler)
    job = await desk.enqueue()
    [message] = await desk.messages()
    cancelled = await desk.cancel(job)
    assert cancelled is not None
    assert cancelled.state is State.CANCELLED
    assert await desk.cancel(job) is None
    await desk.runner().handle(message)
    assert (await desk.get(job)).state is State.CANCELLED


async def test_a_running_job_is_asked_to_stop_and_cleans_up(desk: Desk) -> None:
    """It stays RUNNING with `cancel_requested` until its handler has stopped, then it is CANCELLED."""
    sleeper, runner = Sleeper(), None
    desk.kind(sleeper)
    runner = desk.runner()
    job = await desk.enqueue()
    task = await _running(desk, runner, sleeper.started)
    asked = await desk.cancel(job)
    assert asked is not None
    assert (asked.state, asked.cancel) == (State.RUNNING, True)
    runner.cancelled(str(job.id))
    await asyncio.wait_for(task, 5)
    done = await desk.get(job)
    assert (done.state, done.reason, sleeper.cleaned) == (State.CANCELLED, "CANCELLED", [True])


@pytest.mark.parametrize(("end", "state"), [(None, State.SUCCEEDED), (Retry("x"), State.CANCELLED), (GiveUp("x"), State.CANCELLED)])
async def test_a_cancel_that_nobody_heard_still_counts(desk: Desk, end: Exception | None, state: State) -> None:
    """Whatever the handler does next: it is not tried again. Work that was done in time is done."""

    async def handler(context: Context, _payload: Any) -> None:
        await desk.cancel(context.job)
        if end:
            raise end

    desk.kind(handler)
    job = await desk.enqueue()
    await desk.work()
    assert (await desk.get(job)).state is state


@pytest.mark.parametrize(("state", "after"), [(State.QUEUED, State.CANCELLED), (State.SUCCEEDED, State.SUCCEEDED)])
async def test_a_cancel_that_commits_while_the_outcome_waits_for_it_counts(desk: Desk, state: State, after: State) -> None:
    """The row is locked by the cancel when the outcome comes, which began before and sees the flag all the same."""
    desk.kind(nothing)
    job, other = await desk.enqueue(), await desk.enqueue()
    tickets = [(uuid.UUID(message.job), message.dispatch) for message in await desk.messages()]
    async with desk.database.transaction() as tx:
        held = await claims.claim_all(tx, tickets, lease=timedelta(seconds=9), worker="w", known=["count"])
    outcomes = [claims.Outcome(report=claims.Report(one.job), state=state) for one in held]

    async def finish() -> dict[uuid.UUID, State]:
        async with desk.database.transaction() as tx:
            return await claims.finish(tx, outcomes)

    async with asyncio.TaskGroup() as group, desk.database.transaction() as tx:
        await store.cancel(tx, job.id)
        ending = group.create_task(finish())
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not await tx.value(waits):
            assert not ending.done()
            await asyncio.sleep(0.01)
    assert ending.result() == {job.id: after, other.id: state}
    assert ((await desk.get(job)).state, (await desk.get(other)).state) == (after, state)


async def test_a_cancelled_job_whose_worker_died_is_cancelled(desk: Desk) -> None:
    """Taking it back does not start it again."""
    desk.kind(nothing)
    job = await desk.enqueue()
    [message] = await desk.messages()
    async with desk.database.transaction() as tx:
        await claims.claim(tx, [(job.id, message.dispatch)], lease=timedelta(seconds=9), worker="w", known=["count"])
    await desk.cancel(job)
    await desk.die(job)
    assert (await desk.get(job)).state is State.CANCELLED
    async with desk.database.transaction() as tx:
        again = await store.again(tx, job.id)
    assert again is not None
    assert not again.cancel


async def test_a_handler_that_does_not_stop_loses_its_job(desk: Desk) -> None:
    """After the grace the job is CANCELLED without it, and what it does later finds the fence."""
    started, let_go = asyncio.Event(), asyncio.Event()

    async def handler(_context: Context, _payload: Any) -> None:
        started.set()
        while not let_go.is_set():
            try:
                await asyncio.wait_for(let_go.wait(), 30)
            except asyncio.CancelledError:
                continue

    desk.kind(handler, cancel_grace=timedelta(seconds=0.1))
    runner = desk.runner(heartbeat=0.1)
    job = await desk.enqueue()
    beat = asyncio.ensure_future(runner._beat())
    task = await _running(desk, runner, started)
    await desk.cancel(job)
    runner.cancelled(str(job.id))
    for _ in range(100):
        if (await desk.get(job)).state is State.CANCELLED:
            break
        await asyncio.sleep(0.05)
    assert (await desk.get(job)).state is State.CANCELLED
    let_go.set()
    await asyncio.wait_for(task, 5)
    beat.cancel()
    assert (await desk.get(job)).state is State.CANCELLED


async def test_a_drain_gives_running_jobs_back_without_counting(desk: Desk) -> None:
    """On deploy they are QUEUED at once, others go on, and the attempt does not count; a second fence guards them."""
    sleeper = Sleeper()
    desk.kind(sleeper)
    runner = desk.runner()
    job = await desk.enqueue(max_attempts=1)
    task = await _running(desk, runner, sleeper.started)
    await asyncio.wait_for(runner.drain(), 5)
    await asyncio.wait_for(task, 5)
    back = await desk.get(job)
    assert (back.state, back.attempts, back.waits, sleeper.cleaned) == (State.QUEUED, 0, "", [False])
    desk.kind(nothing)
    await desk.work()
    assert (await desk.get(job)).state is State.SUCCEEDED


async def test_a_lease_that_is_lost_stops_the_handler(desk: Desk) -> None:
    """The heartbeat finds that somebody else has the job; nothing is written any more."""
    sleeper = Sleeper()
    desk.kind(sleeper)
    runner = desk.runner(heartbeat=0.05)
    job = await desk.enqueue()
    beat = asyncio.ensure_future(runner._beat())
    task = await _running(desk, runner, sleeper.started)
    await desk.die(job)
    await asyncio.wait_for(task, 5)
    beat.cancel()
    assert sleeper.cleaned == [False]
    assert (await desk.get(job)).state is State.QUEUED


async def test_a_heartbeat_holds_the_lease(desk: Desk) -> None:
    """A job that runs longer than its lease is not taken back while its worker lives."""
    sleeper = Sleeper()
    desk.kind(sleeper)
    runner = desk.runner(heartbeat=0.05, lease=timedelta(seconds=0.4))
    job = await desk.enqueue()
    beat = asyncio.ensure_future(runner._beat())
    task = await _running(desk, runner, sleeper.started)
    for _ in range(10):
        await asyncio.sleep(0.1)
        async with desk.database.transaction() as tx:
            assert await claims.reap(tx) == []
    assert (await desk.get(job)).state is State.RUNNING
    await runner.drain()
    await task
    beat.cancel()


async def test_progress_and_log_are_written_while_it_runs(desk: Desk) -> None:
    """Percent, message, step and the last 50 lines."""
    told, go = asyncio.Event(), asyncio.Event()

    async def handler(context: Context, _payload: Any) -> None:
        context.progress(33, "a third")
        for number in range(60):
            context.log(f"line {number}")
        told.set()
        await go.wait()

    desk.kind(handler)
    runner = desk.runner()
    job = await desk.enqueue()
    flush = asyncio.ensure_future(runner._flush())
    task = await _running(desk, runner, told)
    for _ in range(100):
        if (seen := await desk.get(job)).percent == 33:
            break
        await asyncio.sleep(0.05)
    assert (seen.message, len(seen.log), seen.log[-1]) == ("a third", 50, "line 59")
    go.set()
    await task
    flush.cancel()


async def test_a_retry_goes_on_at_the_step_that_failed(desk: Desk) -> None:
    """Each step has its own state; one that succeeded is never run again, and its result is there for those after it."""
    runs: list[str] = []

    async def plan(_context: Context, _payload: Any) -> struct_pb2.Struct:
        runs.append("plan")
        return struct_pb2.Struct(fields={"parts": struct_pb2.Value(number_value=2)})

    async def build(context: Context, _payload: Any) -> None:
        runs.append(f"build {context.results['plan']['parts']:.0f}")
        if len(runs) < 4:
            raise Retry("not yet")

    async def ship(_context: Context, _payload: Any) -> struct_pb2.Struct:
        runs.append("ship")
        return struct_pb2.Struct(fields={"ok": struct_pb2.Value(bool_value=True)})

    desk.kind(steps=(Step("plan", plan), Step("build", build), Step("ship", ship)))
    job = await desk.enqueue(max_attempts=2)
    await desk.work()
    await desk.due_now()
    await desk.work()
    dead = await desk.get(job)
    assert (dead.state, dead.step, runs) == (State.DEAD, "build", ["plan", "build 2", "build 2"])
    async with desk.database.transaction() as tx:
        assert [(row.name, row.state, row.attempts) for row in await steps.of(tx, job.id)] == [
            ("plan", "SUCCEEDED", 1), ("build", "FAILED", 2), ("ship", "QUEUED", 0),
        ]  # fmt: skip
        await store.again(tx, job.id)
    await desk.work()
    assert runs[3:] == ["build 2", "ship"]
    assert ((await desk.get(job)).state, (await desk.get(job)).result) == (State.SUCCEEDED, {"ok": True})


async def test_a_steps_effect_commits_with_the_step(desk: Desk) -> None:
    """A later step's failure does not repeat it."""
    await desk.sql("CREATE TABLE IF NOT EXISTS step_effects (job uuid)")

    async def write(context: Context, _payload: Any) -> None:
        async def effect(tx: Any) -> None:
            await tx.execute("INSERT INTO step_effects VALUES ($1)", context.job.id)

        context.effect(effect)

    async def fails(context: Context, _payload: Any) -> None:
        if context.job.attempts < 3:
            raise Retry("again")

    desk.kind(steps=(Step("write", write), Step("fails", fails)))
    job = await desk.enqueue()
    for _ in range(3):
        await desk.work()
        await desk.due_now()
    assert (await desk.get(job)).state is State.SUCCEEDED
    assert await desk.sql("SELECT count(*) FROM step_effects WHERE job = $1", job.id) == 1
