"""All SQL of jobs, as functions over a Tx."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from kubegems.jobs.v1 import events_pb2
from libs.clock import new_id
from libs.jobs.domain import Job, State
from libs.log import trace
from libs.pg import Record, Tx, outbox

SCHEMA = "jobs"
MOVED = "gems.notice.jobs"
WAKE = "jobs"

_COLUMNS = """id, kind, target, state, arguments, creator, percent, message, result, error, attempts, max_attempts, fence, cancel,
              traceparent, create_time, start_time, end_time"""

_INSERT = f"""
INSERT INTO jobs.jobs (id, kind, target, state, arguments, creator, max_attempts, unique_key, traceparent)
VALUES ($1, $2, $3, 'QUEUED', $4, $5, $6, $7, $8)
ON CONFLICT (unique_key) DO NOTHING
RETURNING {_COLUMNS}
"""


async def enqueue(
    tx: Tx,
    *,
    kind: str,
    target: str,
    creator: str,
    max_attempts: int,
    arguments: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
) -> Job | None:
    """Writes a job into the caller's transaction; None when one with the same unique key is there already."""
    row = await tx.row(_INSERT, new_id(), kind, target, dict(arguments or {}), creator, max_attempts, unique_key, trace.traceparent())
    if row is None:
        return None
    job = _job(row)
    await _moved(tx, job)
    await tx.execute("SELECT pg_notify($1, '')", WAKE)
    return job


_GET = f"SELECT {_COLUMNS} FROM jobs.jobs WHERE id = $1"


async def get(tx: Tx, job_id: uuid.UUID) -> Job | None:
    """A job."""
    row = await tx.row(_GET, job_id)
    return None if row is None else _job(row)


_LIST = f"""
SELECT {_COLUMNS} FROM jobs.jobs
 WHERE ($1 OR target = ANY($2) OR target = ANY($3) OR target LIKE ANY($4)) AND ($5::uuid IS NULL OR id < $5) %s
 ORDER BY id DESC LIMIT $6
"""


async def page(
    tx: Tx,
    *,
    everything: bool,
    exact: Sequence[str],
    trees: Sequence[str],
    before: uuid.UUID | None,
    limit: int,
    where: str = "",
    args: Sequence[Any] = (),
) -> list[Job]:
    """Jobs whose target lies in the scopes, newest first; `where` is a parsed filter whose parameters start at $7."""
    below = [_escape(tree) + "/%" for tree in trees]
    sql = _LIST % (f"AND {where}" if where else "")
    return [_job(row) for row in await tx.rows(sql, everything, list(exact), list(trees), below, before, limit, *args)]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


# A job is due for a message when it never had one, or when its last one is so old that it must be lost.
_DISPATCH = """
UPDATE jobs.jobs SET dispatch = dispatch + 1, dispatch_time = now()
 WHERE id IN (
    SELECT id FROM jobs.jobs
     WHERE state = 'QUEUED' AND run_time <= now() AND (dispatch_time IS NULL OR dispatch_time < now() - $2::interval)
     ORDER BY run_time LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING id, queue, attempts, dispatch
"""

_IN_FLIGHT = "SELECT count(*) FROM jobs.jobs WHERE state = 'QUEUED' AND dispatch_time >= now() - $1::interval"


async def take_for_dispatch(tx: Tx, *, window: int, lost_after: timedelta) -> list[tuple[uuid.UUID, str, int, int]]:
    """(job, queue, attempt, dispatch) of what may be sent now, so that at most `window` messages are under way."""
    room = window - await tx.value(_IN_FLIGHT, lost_after)
    if room <= 0:
        return []
    rows = await tx.rows(_DISPATCH, room, lost_after)
    return [(row["id"], row["queue"], row["attempts"] + 1, row["dispatch"]) for row in rows]


_CLAIM = f"""
UPDATE jobs.jobs SET state = 'RUNNING', fence = fence + 1, attempts = attempts + 1, lease_time = now() + $3::interval,
       dispatch_time = NULL, start_time = coalesce(start_time, now()), error = ''
 WHERE id = $1 AND state = 'QUEUED' AND dispatch = $2 AND NOT cancel AND run_time <= now()
RETURNING {_COLUMNS}
"""


async def claim(tx: Tx, job_id: uuid.UUID, dispatch: int, *, lease: timedelta, worker: str) -> Job | None:
    """Takes a job if this is its newest message and nobody holds it; raises the fence."""
    row = await tx.row(_CLAIM, job_id, dispatch, lease)
    if row is None:
        return None
    job = _job(row)
    await tx.execute(
        "INSERT INTO jobs.claims (job, fence, attempt, worker) VALUES ($1, $2, $3, $4)", job.id, job.fence, job.attempts, worker
    )
    await _moved(tx, job)
    return job


_HOLD = "UPDATE jobs.jobs SET lease_time = now() + $3::interval WHERE id = $1 AND fence = $2 AND state = 'RUNNING' AND NOT cancel"


async def hold(tx: Tx, job: Job, lease: timedelta) -> bool:
    """Lengthens the lease; False when the job is no longer ours or was cancelled."""
    return await tx.execute(_HOLD, job.id, job.fence, lease) == 1


_PROGRESS = f"""
UPDATE jobs.jobs SET percent = $3, message = $4, lease_time = now() + $5::interval
 WHERE id = $1 AND fence = $2 AND state = 'RUNNING' AND NOT cancel
RETURNING {_COLUMNS}
"""


async def progress(tx: Tx, job: Job, percent: int, message: str, lease: timedelta) -> bool:
    """Writes progress; False when the job is no longer ours or was cancelled."""
    row = await tx.row(_PROGRESS, job.id, job.fence, max(0, min(percent, 100)), message[:500], lease)
    if row is None:
        return False
    await _moved(tx, _job(row))
    return True


_FINISH = f"""
UPDATE jobs.jobs SET state = $3, result = $4, error = $5, run_time = now() + $6::interval, lease_time = NULL, dispatch_time = NULL,
       percent = CASE WHEN $3 = 'SUCCEEDED' THEN 100 ELSE percent END, end_time = CASE WHEN $3 = 'QUEUED' THEN NULL ELSE now() END
 WHERE id = $1 AND fence = $2 AND state = 'RUNNING'
RETURNING {_COLUMNS}
"""


async def finish(
    tx: Tx, job: Job, state: State, *, result: Mapping[str, Any] | None = None, error: str = "", after: timedelta = timedelta()
) -> bool:
    """Ends an attempt (QUEUED: try again after a while); False when the job is no longer ours."""
    row = await tx.row(_FINISH, job.id, job.fence, state.value, None if result is None else dict(result), error[:2000], after)
    if row is None:
        return False
    await tx.execute("UPDATE jobs.claims SET outcome = $3 WHERE job = $1 AND fence = $2", job.id, job.fence, state.value)
    await _moved(tx, _job(row))
    return True


_CANCEL = f"""
UPDATE jobs.jobs SET cancel = true, state = 'CANCELLED', end_time = now(), lease_time = NULL
 WHERE id = $1 AND state IN ('QUEUED', 'RUNNING')
RETURNING {_COLUMNS}
"""


async def cancel(tx: Tx, job_id: uuid.UUID) -> Job | None:
    """Cancels a job; its runner notices at the next heartbeat. None when it has ended already."""
    row = await tx.row(_CANCEL, job_id)
    if row is None:
        return None
    await _moved(tx, _job(row))
    return _job(row)


_AGAIN = f"""
UPDATE jobs.jobs SET state = 'QUEUED', cancel = false, attempts = 0, run_time = now(), dispatch_time = NULL, percent = 0, message = '',
       error = '', result = NULL, end_time = NULL, start_time = NULL
 WHERE id = $1 AND state IN ('FAILED', 'CANCELLED', 'DEAD')
RETURNING {_COLUMNS}
"""


async def again(tx: Tx, job_id: uuid.UUID) -> Job | None:
    """Queues an ended job again; None when it succeeded or has not ended."""
    row = await tx.row(_AGAIN, job_id)
    if row is None:
        return None
    await _moved(tx, _job(row))
    await tx.execute("SELECT pg_notify($1, '')", WAKE)
    return _job(row)


_REAP = f"""
UPDATE jobs.jobs SET state = CASE WHEN attempts < max_attempts THEN 'QUEUED' ELSE 'DEAD' END, lease_time = NULL, dispatch_time = NULL,
       error = 'the worker that ran it went away', end_time = CASE WHEN attempts < max_attempts THEN NULL ELSE now() END
 WHERE id IN (SELECT id FROM jobs.jobs WHERE state = 'RUNNING' AND lease_time < now() LIMIT 100 FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}
"""


async def reap(tx: Tx) -> int:
    """Takes jobs back whose runner has stopped breathing; how many."""
    rows = await tx.rows(_REAP)
    for row in rows:
        await _moved(tx, _job(row))
    return len(rows)


async def _moved(tx: Tx, job: Job) -> None:
    moved = events_pb2.JobMoved(
        name=job.name, state=job.state.value, percent=job.percent, message=job.message, target=job.target, creator=job.creator
    )
    await outbox.publish(tx, SCHEMA, MOVED, moved)


def _job(row: Record) -> Job:
    return Job(**{**dict(row.items()), "state": State(row["state"])})
