"""Attempts: claim, fence, retry, dead letter, rights, timeouts, results. Messages are doubled and late on purpose."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import struct_pb2, wrappers_pb2

from kubegems.jobs.v1 import events_pb2
from libs.faults import Invalid, Unavailable
from libs.jobs import Context, GiveUp, Kind, LeaseLost, Retry, State, claims, keep, store
from libs.jobs.domain import Order
from libs.jobs.kind import backoff
from libs.jobs.tests.conftest import Desk


async def nothing(_context: Context, _payload: Any) -> None:
    """A handler that is done at once."""


async def test_a_message_that_comes_three_times_runs_the_job_once(desk: Desk) -> None:
    """The claim decides: doubled and late messages do nothing."""
    runs = []

    async def handler(context: Context, payload: wrappers_pb2.StringValue) -> struct_pb2.Struct:
        runs.append((context.job.fence, payload.value))
        result = struct_pb2.Struct()
        result.update({"counted": 3})
        return result

    desk.kind(handler, payload=struct_pb2.Struct)
    desk.kind(handler, payload=wrappers_pb2.StringValue)
    job = await desk.enqueue(payload={})
    [message] = await desk.messages()
    runner = desk.runner()
    await asyncio.gather(*(runner.handle(message) for _ in range(3)))
    await runner.handle(message)
    done = await desk.get(job)
    assert (done.state, done.result, done.percent, runs) == (State.SUCCEEDED, {"counted": 3}, 100, [(1, "")])
    assert await desk.sql("SELECT count(*) FROM jobs.claims") == 1


async def test_a_payload_is_typed(desk: Desk) -> None:
    """A handler gets its proto; unknown fields of a newer release are left out, nonsense ends the job without a run."""
    got = []

    async def handler(_context: Context, payload: events_pb2.JobDispatch) -> None:
        got.append(payload)

    kind = desk.kind(handler, payload=events_pb2.JobDispatch)
    await desk.enqueue(payload=events_pb2.JobDispatch(job="x", attempt=3))
    await desk.enqueue(payload={"job": "y", "from_the_future": 1})
    bad = await desk.enqueue(payload={"attempt": "many"})
    await desk.work()
    assert [(p.job, p.attempt) for p in got] == [("x", 3), ("y", 0)]
    failed = await desk.get(bad)
    assert (failed.state, failed.reason) == (State.FAILED, "BAD_PAYLOAD")
    with pytest.raises(Invalid):
        kind.parse({"from_the_future": 1}, strict=True)
    with pytest.raises(Invalid):
        await desk.enqueue(payload={"job": "x" * 70_000})


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Retry("later"), State.QUEUED, ""),
        (Unavailable("offline"), State.QUEUED, ""),
        (RuntimeError("a mistake with a secret inside"), State.QUEUED, ""),
        (GiveUp("no use"), State.FAILED, "NOT_RETRYABLE"),
        (Invalid("wrong"), State.FAILED, "NOT_RETRYABLE"),
    ],
)
async def test_how_an_attempt_fails_decides_what_follows(desk: Desk, error: Exception, state: State, reason: str) -> None:
    """Retry, an unavailable part and a mistake are tried again; giving up is final; a mistake's text is not shown."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise error

    desk.kind(handler)
    job = await desk.enqueue()
    await desk.work()
    failed = await desk.get(job)
    assert (failed.state, failed.reason, failed.attempts) == (state, reason, 1)
    assert failed.error
    assert "secret" not in failed.error


async def test_a_job_that_fails_too_often_is_kept_for_a_human_who_can_retry_it(desk: Desk) -> None:
    """After max_attempts the job is DEAD with its reason; retrying it starts afresh."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise Retry("never works")

    desk.kind(handler)
    job = await desk.enqueue(max_attempts=2)
    for _ in range(2):
        await desk.work()
        await desk.due_now()
    dead = await desk.get(job)
    assert (dead.state, dead.attempts, dead.reason, dead.error) == (State.DEAD, 2, "ATTEMPTS_EXHAUSTED", "never works")
    assert await desk.messages() == []
    async with desk.database.transaction() as tx:
        again = await store.again(tx, job.id)
    assert again is not None
    assert (again.state, again.attempts) == (State.QUEUED, 0)


async def test_a_retry_waits_with_jitter(desk: Desk) -> None:
    """A failed attempt is not sent again before its time."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise Retry("later", after=timedelta(days=3))

    desk.kind(handler)
    job = await desk.enqueue()
    await desk.work()
    waiting = await desk.get(job)
    assert waiting.waits == "TIME"
    assert timedelta(minutes=59) < waiting.run_time - waiting.create_time < timedelta(minutes=61)
    assert await desk.messages() == []


def test_backoff_grows_and_is_bounded() -> None:
    """Each retry waits longer, never more than ten minutes, and no two the same."""
    assert timedelta(seconds=1) <= backoff(1) <= timedelta(seconds=2)
    assert timedelta(minutes=5) <= backoff(50) <= timedelta(minutes=10)
    assert len({backoff(5) for _ in range(20)}) > 10


async def test_a_kind_can_say_when_to_try_again(desk: Desk) -> None:
    """Its own back-off counts, unless the handler asks for a time itself."""

    async def handler(context: Context, _payload: Any) -> None:
        if context.job.attempts == 2:
            raise Retry("later", after=timedelta(minutes=7))
        raise RuntimeError

    desk.kind(handler, retry_after=lambda attempt: timedelta(minutes=10 * attempt))
    job = await desk.enqueue(max_attempts=9)
    for minutes in (10, 7, 30):
        await desk.work()
        waits = await desk.sql("SELECT run_time - jobs.clock() FROM jobs.jobs WHERE id = $1", job.id)
        assert timedelta(minutes=minutes - 1) < waits <= timedelta(minutes=minutes)
        await desk.due_now()


async def test_a_dead_runners_job_is_taken_back_and_its_late_outcome_ignored(desk: Desk) -> None:
    """The fence: whoever lost the lease writes nothing, neither progress nor outcome nor in a transaction of the job."""
    job = await desk.enqueue()
    desk.kind(nothing)
    [message] = await desk.messages()
    async with desk.database.transaction() as tx:
        [held] = await claims.claim(tx, [(job.id, message.dispatch)], lease=timedelta(seconds=9), worker="w0", known=["count"])
    await desk.die(job)
    taken_back = await desk.get(job)
    assert (taken_back.state, taken_back.reason, taken_back.attempts) == (State.QUEUED, "WORKER_LOST", 1)
    ghost = Context(held.job, desk.database)

    async def handler(_context: Context, _payload: Any) -> struct_pb2.Struct:
        async with desk.database.transaction() as tx:
            assert not await claims.finish(tx, [claims.Outcome(report=ghost.report, state=State.SUCCEEDED, result={"by": "ghost"})])
            assert not await claims.progress(tx, [ghost.report])
            assert not await claims.hold(tx, [held.job], timedelta(seconds=5))
        with pytest.raises(LeaseLost):
            async with ghost.transaction():
                pass
        result = struct_pb2.Struct()
        result["by"] = "second"
        return result

    desk.kind(handler)
    await desk.work()
    assert (await desk.get(job)).result == {"by": "second"}
    async with desk.database.transaction() as tx:
        log = await tx.rows("SELECT fence, outcome FROM jobs.claims ORDER BY fence")
    assert [(c["fence"], c["outcome"]) for c in log] == [(1, "WORKER_LOST"), (2, "SUCCEEDED")]


async def test_a_job_that_kills_its_workers_ends_dead(desk: Desk) -> None:
    """A worker's death counts as an attempt, so poison does not go round for ever."""
    desk.kind(nothing)
    job = await desk.enqueue(max_attempts=2)
    for _ in range(2):
        [message] = await desk.messages()
        async with desk.database.transaction() as tx:
            await claims.claim(tx, [(job.id, message.dispatch)], lease=timedelta(seconds=9), worker="w0", known=["count"])
        await desk.die(job)
    dead = await desk.get(job)
    assert (dead.state, dead.reason) == (State.DEAD, "WORKER_LOST")


async def test_an_effect_is_there_exactly_when_the_outcome_is(desk: Desk) -> None:
    """Effects commit with SUCCEEDED: a failed attempt leaves none, a runner without the fence leaves none."""
    await desk.sql("CREATE TABLE IF NOT EXISTS effects (job uuid, fence bigint)")
    tries = []

    async def handler(context: Context, _payload: Any) -> None:
        async def effect(tx: Any) -> None:
            await tx.execute("INSERT INTO effects VALUES ($1, $2)", context.job.id, context.job.fence)

        context.effect(effect)
        tries.append(1)
        if len(tries) == 1:
            raise Retry("once more")
        if len(tries) == 2:  # somebody else got it meanwhile
            await desk.die(context.job)

    desk.kind(handler)
    job = await desk.enqueue(max_attempts=5)
    for _ in range(3):
        await desk.work()
        await desk.due_now()
    assert (await desk.get(job)).state is State.SUCCEEDED
    async with desk.database.transaction() as tx:
        assert [row["fence"] for row in await tx.rows("SELECT fence FROM effects WHERE job = $1", job.id)] == [3]


async def test_an_attempt_ends_after_its_time(desk: Desk) -> None:
    """The handler is stopped and may clean up; the last attempt's reason says so."""
    cleaned = []

    async def handler(_context: Context, _payload: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(1)

    desk.kind(handler, timeout=timedelta(seconds=0.05))
    job = await desk.enqueue(max_attempts=1)
    await desk.work()
    dead = await desk.get(job)
    assert (dead.state, dead.reason, cleaned) == (State.DEAD, "TIMEOUT", [1])


async def test_rights_are_checked_again_at_every_claim(desk: Desk) -> None:
    """An owner who lost the right cannot run it any more; while nobody can tell, the job waits and no attempt is counted."""

    async def handler(_context: Context, _payload: Any) -> None:
        raise AssertionError("must not run")

    desk.kind(handler)
    job = await desk.enqueue()
    desk.allowed = Unavailable("the gateway is away")
    await desk.work()
    waiting = await desk.get(job)
    assert (waiting.state, waiting.attempts, waiting.waits) == (State.QUEUED, 0, "TIME")
    desk.allowed = False
    await desk.due_now()
    await desk.work()
    failed = await desk.get(job)
    assert (failed.state, failed.reason) == (State.FAILED, "FORBIDDEN")
    assert desk.asked == [("dev", "jobs.jobs.create", "clusters/a")] * 2


async def test_the_platforms_own_work_asks_nobody(desk: Desk) -> None:
    """A schedule's job has no owner unless its schedule has one."""
    desk.kind(nothing)
    await desk.enqueue(creator="schedules/x")
    await desk.enqueue(creator="schedules/x", owner="users/root")
    await desk.work()
    assert [who for who, _, _ in desk.asked] == ["root"]


async def test_an_idempotency_key_makes_one_job_for_ever_and_a_pending_key_one_at_a_time(desk: Desk) -> None:
    """The second order gets the first one's job."""
    desk.kind(nothing)
    first, second = await desk.enqueue(idempotency_key="tick"), await desk.enqueue(idempotency_key="tick")
    assert first.id == second.id
    one, two = await desk.enqueue(pending_key="p"), await desk.enqueue(pending_key="p")
    assert one.id == two.id
    await desk.work()
    assert (await desk.enqueue(idempotency_key="tick")).id == first.id
    assert (await desk.enqueue(pending_key="p")).id != one.id


async def test_many_orders_at_once_leave_out_those_whose_key_is_taken(desk: Desk) -> None:
    """One statement enqueues all; keys count there too."""
    orders = [Order(kind="count", target="clusters/a", creator="users/dev", idempotency_key=key) for key in ("a", "b", "a")]
    async with desk.database.transaction() as tx:
        assert len(await store.enqueue_many(tx, orders)) == 2
    async with desk.database.transaction() as tx:
        assert await store.enqueue_many(tx, orders) == []


async def test_each_move_is_an_event_in_the_same_transaction(desk: Desk) -> None:
    """A rolled-back job leaves no event; progress and log lines come with theirs."""

    async def broken() -> None:
        async with desk.database.transaction() as tx:
            await store.enqueue(tx, Order(kind="count", target="clusters/a", creator="users/dev"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await broken()
    assert await desk.sql("SELECT count(*) FROM jobs.outbox") == 0

    async def handler(context: Context, _payload: Any) -> None:
        context.progress(40, "half")
        context.log("first line\nsecond line")

    desk.kind(handler)
    job = await desk.enqueue()
    await desk.work()
    async with desk.database.transaction() as tx:
        moves = [events_pb2.JobMoved.FromString(r["payload"]) for r in await tx.rows("SELECT payload FROM jobs.outbox ORDER BY seq")]
    assert [m.state for m in moves] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert list(moves[2].log_lines) == ["first line", "second line"]
    done = await desk.get(job)
    assert (done.message, list(done.log)) == ("half", ["first line", "second line"])


async def test_a_result_and_a_job_are_kept_for_their_time(desk: Desk) -> None:
    """First the result goes, then the job; what failed stays for 30 days."""

    async def handler(_context: Context, _payload: Any) -> struct_pb2.Struct:
        return struct_pb2.Struct(fields={"x": struct_pb2.Value(number_value=1)})

    async def fails(_context: Context, _payload: Any) -> None:
        raise GiveUp("no")

    desk.kind(handler, keep=timedelta(hours=2), keep_result=timedelta(hours=1))
    desk.kind(fails, name="fails", keep=timedelta(hours=2))
    job, failed = await desk.enqueue(), await desk.enqueue("fails")
    await desk.work()

    async def later(hours: int) -> None:
        await desk.clock(hours * 3600)
        async with desk.database.transaction() as tx:
            await keep.sweep(tx)

    await later(0)
    assert (await desk.get(job)).result
    await later(1)
    assert (await desk.get(job)).result is None
    await later(3)
    assert await desk.sql("SELECT count(*) FROM jobs.jobs WHERE id = $1", job.id) == 0
    assert (await desk.get(failed)).state is State.FAILED


async def test_an_outcome_that_cannot_be_stored_is_an_end_and_harms_no_other(desk: Desk) -> None:
    """A result that PostgreSQL refuses fails that job alone."""

    async def handler(context: Context, _payload: Any) -> wrappers_pb2.StringValue:
        context.log("a NUL \x00 is left out")
        return wrappers_pb2.StringValue(value="")

    async def bad(_context: Context, _payload: Any) -> struct_pb2.Struct:
        return struct_pb2.Struct(fields={"x": struct_pb2.Value(string_value="nul \x00")})

    desk.kind(handler)
    desk.kind(bad, name="bad")
    good, worse = await desk.enqueue(), await desk.enqueue("bad")
    runner = desk.runner()
    await asyncio.gather(*(runner.handle(message) for message in await desk.messages()))
    assert (await desk.get(good)).state is State.SUCCEEDED
    assert (await desk.get(worse)).state is State.FAILED


def test_a_kind_that_cannot_work_is_refused_at_once() -> None:
    """A handler or steps, and every name once."""
    with pytest.raises(ValueError, match="handler or steps"):
        Kind("x", targets="clusters", depth=2, permission="")
