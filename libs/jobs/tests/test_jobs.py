"""The engine against a real PostgreSQL; messages of the queue are made by hand, doubled and late on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kubegems.jobs.v1 import events_pb2
from libs.faults import Unavailable
from libs.jobs import store
from libs.jobs.domain import GiveUp, Job, Kind, Progress, Retry, State, backoff
from libs.jobs.runner import Runner
from libs.pg import Database, migrate
from tests.kit.data import FreshDatabase

MIGRATIONS = Path(__file__).parents[1] / "migrations"


@pytest.fixture(scope="module")
async def opened(database: FreshDatabase) -> AsyncIterator[Database]:
    connected = await Database.connect(database.dsn, application_name="jobs test")
    await migrate(connected, "jobs", MIGRATIONS)
    yield connected
    await connected.close()


@pytest.fixture
async def jobs(opened: Database) -> Database:
    async with opened.transaction() as tx:
        await tx.execute("TRUNCATE jobs.jobs, jobs.claims, jobs.outbox, jobs.schedules CASCADE")
    return opened


async def _enqueue(database: Database, kind: str = "count", max_attempts: int = 3, unique_key: str | None = None) -> Job | None:
    async with database.transaction() as tx:
        return await store.enqueue(
            tx, kind=kind, target="clusters/a", creator="users/dev", max_attempts=max_attempts, unique_key=unique_key
        )


async def _messages(database: Database, lost_after: timedelta = timedelta(seconds=30)) -> list[events_pb2.JobDispatch]:
    async with database.transaction() as tx:
        taken = await store.take_for_dispatch(tx, window=100, lost_after=lost_after)
    return [events_pb2.JobDispatch(job=str(job), attempt=attempt, dispatch=dispatch) for job, _, attempt, dispatch in taken]


async def _get(database: Database, job: Job) -> Job:
    async with database.transaction() as tx:
        found = await store.get(tx, job.id)
    assert found is not None
    return found


async def _due_now(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.execute("UPDATE jobs.jobs SET run_time = now()")


def _runner(database: Database, handler: Any, *, allowed: bool = True) -> Runner:
    async def may(username: str, permission: str, target: str) -> bool:
        assert (username, permission, target) == ("dev", "jobs.jobs.create", "clusters/a")
        return allowed

    kind = Kind("count", targets="clusters", depth=2, permission="jobs.jobs.create", handler=handler, timeout=timedelta(seconds=2))
    return Runner(database, {"count": kind}, allowed=may, worker="w1")


async def test_a_message_that_comes_three_times_runs_the_job_once(jobs: Database) -> None:
    """The claim decides: doubled and late messages do nothing."""
    runs = []

    async def handler(job: Job, progress: Progress) -> Mapping[str, Any]:
        await progress(50, "half")
        runs.append(job.fence)
        return {"counted": 3}

    job = await _enqueue(jobs)
    assert job is not None
    [message] = await _messages(jobs)
    runner = _runner(jobs, handler)
    await asyncio.gather(*(runner.handle(message) for _ in range(3)))
    await runner.handle(message)
    done = await _get(jobs, job)
    assert (done.state, done.result, done.percent, runs) == (State.SUCCEEDED, {"counted": 3}, 100, [1])


async def test_a_lost_message_is_sent_again_and_the_old_one_refused(jobs: Database) -> None:
    """A message that is not answered in time is replaced; the replaced one may not claim."""

    async def handler(_job: Job, _progress: Progress) -> Mapping[str, Any]:
        return {}

    job = await _enqueue(jobs)
    assert job is not None
    [old] = await _messages(jobs)
    assert await _messages(jobs) == []
    [new] = await _messages(jobs, lost_after=timedelta(0))
    assert new.dispatch == old.dispatch + 1
    runner = _runner(jobs, handler)
    await runner.handle(old)
    assert (await _get(jobs, job)).state is State.QUEUED
    await runner.handle(new)
    assert (await _get(jobs, job)).state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Retry("later"), State.QUEUED),
        (Unavailable("offline"), State.QUEUED),
        (RuntimeError("a mistake with a secret inside"), State.QUEUED),
        (GiveUp("no use"), State.FAILED),
    ],
)
async def test_how_an_attempt_fails_decides_what_follows(jobs: Database, error: Exception, state: State) -> None:
    """Retry, an unavailable part and a mistake are tried again; giving up is final; a mistake's text is not shown."""

    async def handler(_job: Job, _progress: Progress) -> Mapping[str, Any]:
        raise error

    job = await _enqueue(jobs)
    assert job is not None
    [message] = await _messages(jobs)
    await _runner(jobs, handler).handle(message)
    failed = await _get(jobs, job)
    assert failed.state is state
    assert "secret" not in failed.error
    assert failed.error


async def test_a_job_that_fails_too_often_is_kept_for_a_human_who_can_retry_it(jobs: Database) -> None:
    """After max_attempts the job is DEAD; retrying it starts afresh."""

    async def handler(_job: Job, _progress: Progress) -> Mapping[str, Any]:
        raise Retry("never works")

    job = await _enqueue(jobs, max_attempts=2)
    assert job is not None
    for _ in range(2):
        [message] = await _messages(jobs)
        await _runner(jobs, handler).handle(message)
        await _due_now(jobs)
    dead = await _get(jobs, job)
    assert (dead.state, dead.attempts) == (State.DEAD, 2)
    async with jobs.transaction() as tx:
        again = await store.again(tx, job.id)
    assert again is not None
    assert (again.state, again.attempts) == (State.QUEUED, 0)


async def test_a_dead_runners_job_is_taken_back_and_its_late_outcome_ignored(jobs: Database) -> None:
    """The fence: whoever lost the lease writes nothing."""
    job = await _enqueue(jobs)
    assert job is not None
    [message] = await _messages(jobs)
    async with jobs.transaction() as tx:
        held = await store.claim(tx, job.id, message.dispatch, lease=timedelta(seconds=-1), worker="w0")
    assert held is not None
    async with jobs.transaction() as tx:
        assert await store.reap(tx) == 1
    [second] = await _messages(jobs)

    async def handler(_job: Job, _progress: Progress) -> Mapping[str, Any]:
        async with jobs.transaction() as tx:
            assert not await store.finish(tx, held, State.SUCCEEDED, result={"by": "ghost"})
            assert not await store.progress(tx, held, 10, "ghost", timedelta(seconds=5))
        return {"by": "second"}

    await _runner(jobs, handler).handle(second)
    assert (await _get(jobs, job)).result == {"by": "second"}
    async with jobs.transaction() as tx:
        claims = await tx.rows("SELECT fence, outcome FROM jobs.claims ORDER BY fence")
    assert [(c["fence"], c["outcome"]) for c in claims] == [(1, None), (2, "SUCCEEDED")]


async def test_cancelling_stops_a_running_job(jobs: Database) -> None:
    """The next progress report stops the handler, and the job stays CANCELLED."""
    job = await _enqueue(jobs)
    assert job is not None
    reached = []

    async def handler(running: Job, progress: Progress) -> Mapping[str, Any]:
        async with jobs.transaction() as tx:
            assert await store.cancel(tx, running.id) is not None
        await progress(10, "still here?")
        reached.append("after")
        return {}

    [message] = await _messages(jobs)
    await _runner(jobs, handler).handle(message)
    assert reached == []
    assert (await _get(jobs, job)).state is State.CANCELLED


async def test_a_creator_who_lost_the_right_cannot_run_it_any_more(jobs: Database) -> None:
    """Rights are checked again at every claim."""

    async def handler(_job: Job, _progress: Progress) -> Mapping[str, Any]:
        raise AssertionError("must not run")

    job = await _enqueue(jobs)
    assert job is not None
    [message] = await _messages(jobs)
    await _runner(jobs, handler, allowed=False).handle(message)
    failed = await _get(jobs, job)
    assert failed.state is State.FAILED
    assert "no longer" in failed.error


async def test_the_window_bounds_what_is_under_way(jobs: Database) -> None:
    """However long the backlog is, only `window` messages are in the queue."""
    for _ in range(7):
        await _enqueue(jobs)
    async with jobs.transaction() as tx:
        assert len(await store.take_for_dispatch(tx, window=5, lost_after=timedelta(seconds=30))) == 5
        assert await store.take_for_dispatch(tx, window=5, lost_after=timedelta(seconds=30)) == []


async def test_a_unique_key_makes_one_job(jobs: Database) -> None:
    """A schedule's tick starts a job once, however many workers see it."""
    first, second = await _enqueue(jobs, unique_key="tick"), await _enqueue(jobs, unique_key="tick")
    assert first is not None
    assert second is None


async def test_each_move_is_an_event_in_the_same_transaction(jobs: Database) -> None:
    """A rolled-back job leaves no event."""

    async def broken() -> None:
        async with jobs.transaction() as tx:
            await store.enqueue(tx, kind="count", target="clusters/a", creator="users/dev", max_attempts=1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await broken()
    async with jobs.transaction() as tx:
        assert await tx.value("SELECT count(*) FROM jobs.outbox") == 0
    await _enqueue(jobs)
    async with jobs.transaction() as tx:
        assert await tx.value("SELECT count(*) FROM jobs.outbox") == 1


def test_backoff_grows_and_is_bounded() -> None:
    """Each retry waits longer, never more than ten minutes."""
    assert timedelta(seconds=1) <= backoff(1) <= timedelta(seconds=2)
    assert timedelta(minutes=5) <= backoff(50) <= timedelta(minutes=10)
