"""Outcomes on their way: a database that is away for a while, one that never takes them, and what a message carries."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest

from kubegems.jobs.v1 import events_pb2
from libs.faults import Unavailable
from libs.jobs import Context, State, claims, ending, tickets
from libs.jobs.tests.conftest import Desk
from libs.jobs.tests.test_engine import nothing
from libs.jobs.window import Message


async def test_an_outcome_waits_for_a_database_that_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job stays ours meanwhile, and its work is not done again."""
    runs, finish, away = [], claims.finish, [3]

    async def handler(context: Context, _payload: Any) -> None:
        runs.append(context.job.id)

    async def refuses(tx: Any, outcomes: Any) -> Any:
        if away[0]:
            away[0] -= 1
            raise Unavailable("the database is away")
        return await finish(tx, outcomes)

    monkeypatch.setattr(claims, "finish", refuses)
    monkeypatch.setattr(ending, "_AGAIN_SECONDS", 0.01)
    desk.kind(handler)
    made = [await desk.enqueue() for _ in range(3)]
    runner = desk.runner()
    await asyncio.gather(*(runner.handle(message) for message in await desk.messages()))
    assert [(await desk.get(job)).state for job in made] == [State.SUCCEEDED] * 3
    assert (sorted(runs), runner.running, away) == (sorted(job.id for job in made), 0, [0])


async def test_an_outcome_that_is_late_for_good_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time the job has long been somebody else's: who held it lets go, and the lease brings it back."""

    async def refuses(_tx: Any, _outcomes: Any) -> Any:
        raise Unavailable("the database is away")

    monkeypatch.setattr(claims, "finish", refuses)
    monkeypatch.setattr(ending, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(ending, "_WRITE_SECONDS", 0.05)
    desk.kind(nothing)
    job = await desk.enqueue()
    runner = desk.runner()
    for message in await desk.messages():
        await runner.handle(message)
    assert (runner.running, (await desk.get(job)).state) == (0, State.RUNNING)
    monkeypatch.undo()
    await desk.die(job)
    await desk.work()
    assert (await desk.get(job)).state is State.SUCCEEDED


async def test_a_bad_outcome_is_told_from_the_good_ones_of_its_batch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written together they are refused together; each alone shows which one it is."""
    batches, finish = [], claims.finish

    async def counts(tx: Any, outcomes: Any) -> Any:
        batches.append(len(outcomes))
        return await finish(tx, outcomes)

    monkeypatch.setattr(claims, "finish", counts)
    monkeypatch.setattr(ending, "_REFUSED_SECONDS", 0.01)
    desk.kind(nothing)
    made = [await desk.enqueue() for _ in range(5)]
    asked = [ticket for message in await desk.messages() for ticket in tickets.of(message)]
    async with desk.database.transaction() as tx:
        held = await claims.claim_all(tx, asked, lease=timedelta(seconds=9), worker="w", known=["count"])
    told: dict[uuid.UUID, State | None] = {}
    done = asyncio.Event()

    def tell(outcome: claims.Outcome, state: State | None) -> None:
        told[outcome.report.job.id] = state
        if len(told) == len(made):
            done.set()

    writer = ending.Ending(desk.database)
    for one in held:
        bad = {"x": "nul \x00"} if one.job.id == made[2].id else None
        writer.add(claims.Outcome(report=claims.Report(one.job), state=State.SUCCEEDED, result=bad), tell, lambda: False)
    await asyncio.wait_for(done.wait(), 10)
    assert batches[0] == 5
    assert [told[job.id] for job in made] == [State.SUCCEEDED] * 2 + [State.FAILED] + [State.SUCCEEDED] * 2


async def test_an_outcome_that_is_never_taken_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even its replacement can be stored: it does not keep the others from being written together for ever."""
    asked = []

    async def refuses(_tx: Any, outcomes: Any) -> Any:
        asked.append([outcome.state for outcome in outcomes])
        raise RuntimeError("never")

    monkeypatch.setattr(claims, "finish", refuses)
    monkeypatch.setattr(ending, "_REFUSED_SECONDS", 0.01)
    desk.kind(nothing)
    job = await desk.enqueue()
    [message] = await desk.messages()
    runner = desk.runner()
    await asyncio.wait_for(runner.handle(message), 10)
    assert (runner.running, asked[0], asked[-1]) == (0, [State.SUCCEEDED], [State.FAILED])
    assert (await desk.get(job)).state is State.RUNNING  # until its lease ends


def test_a_message_carries_jobs_of_one_queue_in_order() -> None:
    """As many together as asked for, never of two queues, none left out; what is no message of ours is told."""
    sent = [Message(uuid.uuid4(), queue, 1, number) for number, queue in enumerate("aaaaabba")]
    found = [(queue, tickets.parse(data)) for queue, data in tickets.bundles(sent, 3)]
    assert [(queue, len(jobs)) for queue, jobs in found] == [("a", 3), ("a", 2), ("b", 2), ("a", 1)]
    assert [ticket for _, jobs in found for ticket in jobs] == [(m.job, m.dispatch) for m in sent]
    for nonsense in (b"nonsense", events_pb2.JobDispatch(job="x").SerializeToString()):
        with pytest.raises(ValueError, match=r"."):
            tickets.parse(nonsense)


async def test_a_message_of_several_jobs_starts_those_that_may(desk: Desk) -> None:
    """One that was cancelled meanwhile, or is doubled in it, harms no other."""
    runs = []

    async def handler(context: Context, _payload: Any) -> None:
        runs.append(context.job.id)

    desk.kind(handler)
    made = [await desk.enqueue() for _ in range(4)]
    first, *others = await desk.messages()
    older = events_pb2.JobDispatch(job=others[1].job, attempt=1, dispatch=others[1].dispatch - 1)
    first.also.extend([older, *others, others[0], older])
    await desk.cancel(made[1])
    await desk.runner().handle(first)
    assert sorted(runs) == sorted(job.id for job in (made[0], *made[2:]))
    assert [(await desk.get(job)).state for job in made] == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED, State.SUCCEEDED]
