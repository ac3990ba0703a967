"""What a runner writes: claims, heartbeats, progress, outcomes. Each for many jobs with one statement, each under the fence."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from libs.jobs import rows
from libs.jobs.domain import Job, State
from libs.jobs.rows import COLUMNS, COLUMNS_OF_J
from libs.jobs.tickets import Ticket
from libs.pg import Record, Tx, UniqueViolation

# The planner knows nothing of a table that fills and empties all the time: LATERAL with a lock leaves it no other way than
# one probe of the primary key for each job, in order of id, so that two batches never wait for each other.
# NOT cancel: a cancelled job that waits has ended already; this is for one that is cancelled between two statements.
_CLAIM = f"""
WITH asked AS MATERIALIZED (
    SELECT a.id FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS m (id, dispatch) ORDER BY id) AS a CROSS JOIN LATERAL (
        SELECT 1 FROM jobs.jobs j
         WHERE j.id = a.id AND j.dispatch = a.dispatch AND j.state = 'QUEUED' AND j.run_time <= jobs.clock() AND NOT j.cancel
           AND j.kind = ANY($5) AND (j.concurrency_key IS NULL OR $6)
           AND j.queue <> ALL (ARRAY(SELECT q.name FROM jobs.queues q WHERE q.paused))
           FOR UPDATE OF j) AS l)
UPDATE jobs.jobs j SET state = 'RUNNING', fence = fence + 1, attempts = attempts + 1, lease_time = jobs.clock() + $3::interval,
       dispatch_time = NULL, waits = '', start_time = coalesce(start_time, jobs.clock()), error = '', reason = '', worker = $4,
       message = CASE WHEN attempts = 0 THEN '' ELSE message END
  FROM asked WHERE j.id = asked.id
RETURNING {COLUMNS_OF_J}, extract(epoch FROM jobs.clock() - j.ready_time)::float8 AS lag
"""

# A message that found its job not ready for it gives the job back, with what it waits for; newer messages are left alone.
_GIVE_BACK = """
UPDATE jobs.jobs j SET dispatch_time = NULL,
       waits = CASE WHEN j.kind <> ALL($3) THEN 'KIND' WHEN j.run_time > jobs.clock() THEN 'TIME' ELSE j.waits END
  FROM unnest($1::uuid[], $2::bigint[]) AS a (id, dispatch)
 WHERE j.id = ANY($1) AND j.id = a.id AND j.dispatch = a.dispatch AND j.state = 'QUEUED'
"""


class Claimed(NamedTuple):
    """A job that is ours, and the seconds since it could have started."""

    job: Job
    lag: float


async def claim(
    tx: Tx, tickets: Sequence[Ticket], *, lease: timedelta, worker: str, known: Sequence[str], keyed: bool = False
) -> list[Claimed]:
    """Takes the jobs whose newest message this is and that nobody holds; raises their fences.

    Args:
        tx: the transaction.
        tickets: what messages say.
        lease: until when they are ours without a heartbeat.
        worker: our name, for the log of claims.
        known: kinds that we can do.
        keyed: jobs with a concurrency key too; then give one ticket alone, since the key may be taken.
    """
    ids, dispatches = [ticket[0] for ticket in tickets], [ticket[1] for ticket in tickets]
    found = await tx.rows(_CLAIM, ids, dispatches, lease, worker, list(known), keyed)
    claimed = [Claimed(rows.job(row), row["lag"]) for row in found]
    await rows.moved(tx, [one.job for one in claimed])
    return claimed


async def claim_keyed(tx: Tx, ticket: Ticket, *, lease: timedelta, worker: str, known: Sequence[str]) -> Claimed | None:
    """Takes one job even if it has a concurrency key; None when somebody holds the key, or it is not ours to take."""
    try:
        async with tx.savepoint():
            found = await claim(tx, [ticket], lease=lease, worker=worker, known=known, keyed=True)
    except UniqueViolation:
        await tx.execute(
            "UPDATE jobs.jobs SET dispatch_time = NULL, waits = 'KEY' WHERE id = $1 AND dispatch = $2 AND state = 'QUEUED'", *ticket
        )
        return None
    return found[0] if found else None


async def give_back(tx: Tx, tickets: Sequence[Ticket], known: Sequence[str]) -> None:
    """Lets jobs wait for what they lack: a worker that knows the kind, their time, their queue."""
    await tx.execute(_GIVE_BACK, [ticket[0] for ticket in tickets], [ticket[1] for ticket in tickets], list(known))


_HOLD = """
WITH ours AS MATERIALIZED (
    SELECT h.id FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS e (id, fence) ORDER BY id) AS h
     CROSS JOIN LATERAL (SELECT 1 FROM jobs.jobs j WHERE j.id = h.id AND j.fence = h.fence AND j.state = 'RUNNING' FOR UPDATE) AS l)
UPDATE jobs.jobs j SET lease_time = jobs.clock() + $3::interval FROM ours h WHERE j.id = h.id
RETURNING j.id, j.cancel
"""


async def hold(tx: Tx, jobs: Sequence[Job], lease: timedelta) -> dict[uuid.UUID, bool]:
    """Lengthens leases; the jobs that are still ours, with whether they are to be cancelled."""
    found = await tx.rows(_HOLD, [job.id for job in jobs], [job.fence for job in jobs], lease)
    return {row["id"]: row["cancel"] for row in found}


@dataclass(slots=True)
class Report:
    """How far a job is."""

    job: Job
    percent: int = 0
    message: str = ""
    step: str = ""
    log: list[str] = field(default_factory=list)
    new_lines: list[str] = field(default_factory=list)


_PROGRESS = f"""
WITH ours AS MATERIALIZED (
    SELECT p.* FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::text[], $5::text[], $6::text[])
       AS e (id, fence, percent, message, step, lines) ORDER BY id) AS p
     CROSS JOIN LATERAL (SELECT 1 FROM jobs.jobs j WHERE j.id = p.id AND j.fence = p.fence AND j.state = 'RUNNING' FOR UPDATE) AS l)
UPDATE jobs.jobs j SET percent = p.percent, message = p.message, step = p.step,
       log = CASE WHEN p.lines = '' THEN j.log ELSE string_to_array(p.lines, E'\\n') END
  FROM ours p WHERE j.id = p.id
RETURNING {COLUMNS_OF_J}
"""


async def progress(tx: Tx, reports: Sequence[Report]) -> set[uuid.UUID]:
    """Writes how far jobs are; the ids of those that are still ours."""
    found = await tx.rows(
        _PROGRESS, [r.job.id for r in reports], [r.job.fence for r in reports], [r.percent for r in reports],
        [r.message for r in reports], [r.step for r in reports], ["\n".join(r.log) for r in reports],
    )  # fmt: skip
    await rows.moved(tx, [rows.job(row) for row in found], {r.job.id: r.new_lines for r in reports})
    return {row["id"] for row in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        state: QUEUED: to be tried again.
        after: when.
        counted: False: the attempt does not count, since it was not the job's fault that it ended.
        keep: how long the job is kept once it has ended.
    """

    report: Report
    state: State
    result: Mapping[str, Any] | None = None
    error: str = ""
    reason: str = ""
    after: timedelta = timedelta()
    counted: bool = True
    keep: timedelta = timedelta(days=30)
    keep_result: timedelta = timedelta(days=7)


# A cancel that came too late for a job that succeeded changes nothing; any other end of a cancelled job is CANCELLED.
_STATE = "CASE WHEN j.cancel AND f.state <> 'SUCCEEDED' THEN 'CANCELLED' ELSE f.state END"
_FINISH = f"""
WITH ours AS MATERIALIZED (
    SELECT f.* FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::jsonb[], $5::text[], $6::text[], $7::interval[],
                                          $8::bool[], $9::int[], $10::text[], $11::text[], $12::text[], $13::interval[],
                                          $14::interval[], $15::int[])
       AS e (id, fence, state, result, error, reason, after, counted, percent, message, step, lines, keep, keep_result, attempt)
       ORDER BY id) AS f
     CROSS JOIN LATERAL (SELECT 1 FROM jobs.jobs j WHERE j.id = f.id AND j.fence = f.fence AND j.state = 'RUNNING' FOR UPDATE) AS l)
UPDATE jobs.jobs j
   SET state = {_STATE}, result = f.result, reason = CASE {_STATE} WHEN 'CANCELLED' THEN 'CANCELLED' ELSE f.reason END, error = f.error,
       lease_time = NULL, dispatch_time = NULL, attempts = CASE WHEN f.counted THEN j.attempts ELSE greatest(j.attempts - 1, 0) END,
       run_time = CASE {_STATE} WHEN 'QUEUED' THEN jobs.clock() + f.after ELSE j.run_time END,
       ready_time = CASE {_STATE} WHEN 'QUEUED' THEN jobs.clock() + f.after ELSE j.ready_time END,
       waits = CASE WHEN {_STATE} = 'QUEUED' AND f.after > interval '0' THEN 'TIME' ELSE '' END,
       percent = CASE f.state WHEN 'SUCCEEDED' THEN 100 ELSE f.percent END, message = f.message, step = f.step,
       log = CASE WHEN f.lines = '' THEN j.log ELSE string_to_array(f.lines, E'\\n') END,
       end_time = CASE {_STATE} WHEN 'QUEUED' THEN NULL ELSE jobs.clock() END,
       keep_until = CASE {_STATE} WHEN 'QUEUED' THEN NULL WHEN 'SUCCEEDED' THEN jobs.clock() + f.keep
                    ELSE jobs.clock() + greatest(f.keep, interval '30 days') END,
       result_until = CASE WHEN f.result IS NULL THEN NULL ELSE jobs.clock() + f.keep_result END
  FROM ours f WHERE j.id = f.id
RETURNING j.id, j.fence, j.state, j.attempts, j.cancel, j.percent, f.attempt, j.worker
"""
_LOG = """
INSERT INTO jobs.claims (job, fence, attempt, worker, outcome, time)
SELECT job, fence, attempt, worker, outcome, jobs.clock()
  FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::text[], $5::text[]) AS c (job, fence, attempt, worker, outcome)
ON CONFLICT (job, fence) DO UPDATE SET outcome = excluded.outcome, time = excluded.time -- the release before wrote it with the claim
"""


async def finish(tx: Tx, outcomes: Sequence[Outcome]) -> dict[uuid.UUID, State]:
    """Ends attempts; the states of the jobs that were still ours."""
    reports = [outcome.report for outcome in outcomes]
    ids = [report.job.id for report in reports]
    found = await tx.rows(
        _FINISH, ids, [r.job.fence for r in reports], [o.state.value for o in outcomes],
        [None if o.result is None else dict(o.result) for o in outcomes], [rows.storable(o.error)[:2000] for o in outcomes],
        [o.reason for o in outcomes], [o.after for o in outcomes], [o.counted for o in outcomes], [r.percent for r in reports],
        [r.message for r in reports], [r.step for r in reports], ["\n".join(r.log) for r in reports], [o.keep for o in outcomes],
        [o.keep_result for o in outcomes], [r.job.attempts for r in reports],
    )  # fmt: skip
    if found:
        await _tell_ends(tx, {report.job.id: report for report in reports}, found)
    return {row[0]: rows.STATES[row[2]] for row in found}


async def _tell_ends(tx: Tx, reports: Mapping[uuid.UUID, Report], found: Sequence[Record]) -> None:
    ids, fences, states, attempts, cancels, percents, tries, workers = zip(*found, strict=True)
    await tx.execute(_LOG, ids, fences, tries, workers, states)
    events = []
    for id_, state, attempt, cancel, percent in zip(ids, states, attempts, cancels, percents, strict=True):
        report = reports[id_]
        job = report.job
        events.append(
            rows.event(
                job, state=state, percent=percent, message=report.message, step=report.step, attempt=attempt, cancel=cancel,
                lines=report.new_lines,
            )
        )  # fmt: skip
    await rows.tell(tx, events)
    if any(state == "QUEUED" for state in states) or any(reports[id_].job.concurrency_key for id_ in ids):
        await rows.wake(tx)


async def holds(tx: Tx, job: Job) -> bool:
    """Whether a job is ours; it stays so until the transaction ends, since its row is locked."""
    found = await tx.value("SELECT 1 FROM jobs.jobs WHERE id = $1 AND fence = $2 AND state = 'RUNNING' FOR UPDATE", job.id, job.fence)
    return found is not None


_REAP = f"""
UPDATE jobs.jobs SET lease_time = NULL, dispatch_time = NULL, waits = '', run_time = jobs.clock(), ready_time = jobs.clock(),
       state = CASE WHEN cancel THEN 'CANCELLED' WHEN attempts < max_attempts THEN 'QUEUED' ELSE 'DEAD' END,
       error = 'the worker that ran it went away', reason = CASE WHEN cancel THEN 'CANCELLED' ELSE 'WORKER_LOST' END,
       end_time = CASE WHEN attempts < max_attempts AND NOT cancel THEN NULL ELSE jobs.clock() END,
       keep_until = CASE WHEN attempts < max_attempts AND NOT cancel THEN NULL ELSE jobs.clock() + interval '30 days' END
 WHERE id IN (SELECT id FROM jobs.jobs WHERE state = 'RUNNING' AND lease_time < jobs.clock() LIMIT 200 FOR UPDATE SKIP LOCKED)
RETURNING {COLUMNS}, worker
"""


async def reap(tx: Tx) -> list[Job]:
    """Takes jobs back whose runner has stopped breathing."""
    records = await tx.rows(_REAP)
    found = [rows.job(record) for record in records]
    if found:
        workers = [record["worker"] for record in records]
        ids, fences, tries = [job.id for job in found], [job.fence for job in found], [job.attempts for job in found]
        await tx.execute(_LOG, ids, fences, tries, workers, ["WORKER_LOST"] * len(found))
    await rows.moved(tx, found)
    return found


async def claim_all(tx: Tx, tickets: Sequence[Ticket], *, lease: timedelta, worker: str, known: Sequence[str]) -> list[Claimed]:
    """Claims what messages speak of, with concurrency keys too; what must wait is given back with its reason."""
    newest: dict[uuid.UUID, int] = {}  # of two messages for one job
    for job, dispatch in tickets:
        newest[job] = max(dispatch, newest.get(job, dispatch))
    unique = list(newest.items())
    claimed = await claim(tx, unique, lease=lease, worker=worker, known=known)
    if len(claimed) == len(unique):
        return claimed
    ours = {one.job.id for one in claimed}
    left = [ticket for ticket in unique if ticket[0] not in ours]
    sql = "SELECT id FROM jobs.jobs WHERE id = ANY($1) AND state = 'QUEUED' AND concurrency_key IS NOT NULL"
    keyed = {row["id"] for row in await tx.rows(sql, [ticket[0] for ticket in left])}
    for ticket in left:
        if ticket[0] in keyed and (one := await claim_keyed(tx, ticket, lease=lease, worker=worker, known=known)):
            claimed.append(one)
            ours.add(ticket[0])
    await give_back(tx, [ticket for ticket in left if ticket[0] not in ours], known)
    return claimed
