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
from libs.pg import Tx, UniqueViolation

Ticket = tuple[uuid.UUID, int]  # (job, dispatch), as a message of the work queue says

# NOT cancel: a cancelled job that waits has ended already; this is for one that is cancelled between two statements.
_CLAIM = f"""
WITH asked AS (
    SELECT j.id FROM jobs.jobs j JOIN unnest($1::uuid[], $2::bigint[]) AS a (id, dispatch) ON a.id = j.id AND a.dispatch = j.dispatch
     WHERE j.state = 'QUEUED' AND j.run_time <= jobs.clock() AND NOT j.cancel AND j.kind = ANY($5)
       AND (j.concurrency_key IS NULL OR $6)
       AND NOT EXISTS (SELECT 1 FROM jobs.queues q WHERE q.name = j.queue AND q.paused)
     ORDER BY j.id FOR UPDATE OF j)
UPDATE jobs.jobs j SET state = 'RUNNING', fence = fence + 1, attempts = attempts + 1, lease_time = jobs.clock() + $3::interval,
       dispatch_time = NULL, waits = '', start_time = coalesce(start_time, jobs.clock()), error = '', reason = '',
       message = CASE WHEN attempts = 0 THEN '' ELSE message END
  FROM asked WHERE j.id = asked.id
RETURNING {COLUMNS_OF_J}, extract(epoch FROM jobs.clock() - j.ready_time)::float8 AS lag, $4::text AS worker
"""

_LOG_CLAIMS = """
INSERT INTO jobs.claims (job, fence, attempt, worker)
SELECT job, fence, attempt, $4 FROM unnest($1::uuid[], $2::bigint[], $3::int[]) AS c (job, fence, attempt)
"""

# A message that found its job not ready for it gives the job back, with what it waits for; newer messages are left alone.
_GIVE_BACK = """
UPDATE jobs.jobs j SET dispatch_time = NULL,
       waits = CASE WHEN j.kind <> ALL($3) THEN 'KIND' WHEN j.run_time > jobs.clock() THEN 'TIME' ELSE j.waits END
  FROM unnest($1::uuid[], $2::bigint[]) AS a (id, dispatch)
 WHERE j.id = a.id AND j.dispatch = a.dispatch AND j.state = 'QUEUED'
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
    jobs = [one.job for one in claimed]
    if jobs:
        await tx.execute(_LOG_CLAIMS, [j.id for j in jobs], [j.fence for j in jobs], [j.attempts for j in jobs], worker)
        await rows.moved(tx, jobs)
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
UPDATE jobs.jobs j SET lease_time = jobs.clock() + $3::interval
  FROM unnest($1::uuid[], $2::bigint[]) AS h (id, fence)
 WHERE j.id = h.id AND j.fence = h.fence AND j.state = 'RUNNING'
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
UPDATE jobs.jobs j SET percent = p.percent, message = p.message, step = p.step,
       log = CASE WHEN p.lines = '' THEN j.log ELSE string_to_array(p.lines, E'\\n') END
  FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::text[], $5::text[], $6::text[]) AS p (id, fence, percent, message, step, lines)
 WHERE j.id = p.id AND j.fence = p.fence AND j.state = 'RUNNING'
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
_FINISH = f"""
UPDATE jobs.jobs j
   SET state = e.state, result = f.result, reason = CASE e.state WHEN 'CANCELLED' THEN 'CANCELLED' ELSE f.reason END, error = f.error,
       lease_time = NULL, dispatch_time = NULL, attempts = CASE WHEN f.counted THEN j.attempts ELSE greatest(j.attempts - 1, 0) END,
       run_time = CASE e.state WHEN 'QUEUED' THEN jobs.clock() + f.after ELSE j.run_time END,
       ready_time = CASE e.state WHEN 'QUEUED' THEN jobs.clock() + f.after ELSE j.ready_time END,
       waits = CASE WHEN e.state = 'QUEUED' AND f.after > interval '0' THEN 'TIME' ELSE '' END,
       percent = CASE e.state WHEN 'SUCCEEDED' THEN 100 ELSE f.percent END, message = f.message, step = f.step,
       log = CASE WHEN f.lines = '' THEN j.log ELSE string_to_array(f.lines, E'\\n') END,
       end_time = CASE e.state WHEN 'QUEUED' THEN NULL ELSE jobs.clock() END,
       keep_until = CASE e.state WHEN 'QUEUED' THEN NULL WHEN 'SUCCEEDED' THEN jobs.clock() + f.keep
                    ELSE jobs.clock() + greatest(f.keep, interval '30 days') END,
       result_until = CASE WHEN f.result IS NULL THEN NULL ELSE jobs.clock() + f.keep_result END
  FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::jsonb[], $5::text[], $6::text[], $7::interval[], $8::bool[], $9::int[],
              $10::text[], $11::text[], $12::text[], $13::interval[], $14::interval[])
       AS f (id, fence, state, result, error, reason, after, counted, percent, message, step, lines, keep, keep_result)
       JOIN jobs.jobs c ON c.id = f.id
       JOIN LATERAL (SELECT CASE WHEN f.state <> 'SUCCEEDED' AND c.cancel THEN 'CANCELLED' ELSE f.state END AS state) AS e ON true
 WHERE j.id = f.id AND j.fence = f.fence AND j.state = 'RUNNING'
RETURNING {COLUMNS_OF_J}
"""

_LOG_OUTCOMES = """
UPDATE jobs.claims c SET outcome = o.outcome FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS o (job, fence, outcome)
 WHERE c.job = o.job AND c.fence = o.fence
"""


async def finish(tx: Tx, outcomes: Sequence[Outcome]) -> dict[uuid.UUID, Job]:
    """Ends attempts; the jobs that were still ours, as they are now."""
    reports = [outcome.report for outcome in outcomes]
    # The lock comes first and in order of id: the flag `cancel` is read after it, and two batches never wait for each other.
    await tx.execute("SELECT 1 FROM jobs.jobs WHERE id = ANY($1) ORDER BY id FOR UPDATE", [r.job.id for r in reports])
    found = await tx.rows(
        _FINISH, [r.job.id for r in reports], [r.job.fence for r in reports], [o.state.value for o in outcomes],
        [None if o.result is None else dict(o.result) for o in outcomes], [o.error[:2000] for o in outcomes],
        [o.reason for o in outcomes], [o.after for o in outcomes], [o.counted for o in outcomes], [r.percent for r in reports],
        [r.message for r in reports], [r.step for r in reports], ["\n".join(r.log) for r in reports], [o.keep for o in outcomes],
        [o.keep_result for o in outcomes],
    )  # fmt: skip
    ended = [rows.job(row) for row in found]
    if ended:
        await tx.execute(_LOG_OUTCOMES, [j.id for j in ended], [j.fence for j in ended], [j.state.value for j in ended])
        await rows.moved(tx, ended, {r.job.id: r.new_lines for r in reports})
        if any(job.concurrency_key or job.state is State.QUEUED for job in ended):
            await rows.wake(tx)
    return {job.id: job for job in ended}


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
RETURNING {COLUMNS}
"""


async def reap(tx: Tx) -> list[Job]:
    """Takes jobs back whose runner has stopped breathing."""
    found = [rows.job(row) for row in await tx.rows(_REAP)]
    await rows.moved(tx, found)
    return found


async def claim_all(tx: Tx, tickets: Sequence[Ticket], *, lease: timedelta, worker: str, known: Sequence[str]) -> dict[uuid.UUID, Claimed]:
    """Claims what messages speak of, with concurrency keys too; what must wait is given back with its reason."""
    unique = list(dict(sorted(tickets)).items())  # two messages for one job: the newest
    claimed = {one.job.id: one for one in await claim(tx, unique, lease=lease, worker=worker, known=known)}
    left = [ticket for ticket in unique if ticket[0] not in claimed]
    if not left:
        return claimed
    sql = "SELECT id FROM jobs.jobs WHERE id = ANY($1) AND state = 'QUEUED' AND concurrency_key IS NOT NULL"
    keyed = {row["id"] for row in await tx.rows(sql, [ticket[0] for ticket in left])}
    for ticket in left:
        if ticket[0] in keyed and (one := await claim_keyed(tx, ticket, lease=lease, worker=worker, known=known)):
            claimed[ticket[0]] = one
    await give_back(tx, [ticket for ticket in left if ticket[0] not in claimed], known)
    return claimed
