"""The steps of a job: each has a state of its own, written under the job's fence."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from libs.jobs import claims, rows
from libs.jobs.domain import Job, LeaseLost
from libs.pg import Tx


@dataclass(frozen=True, slots=True)
class Row:
    """A row of jobs.steps."""

    name: str
    state: str
    attempts: int
    result: Any
    error: str
    start_time: datetime | None
    end_time: datetime | None


async def of(tx: Tx, job_id: uuid.UUID) -> list[Row]:
    """The steps of a job, in order."""
    found = await tx.rows(
        "SELECT name, state, attempts, result, error, start_time, end_time FROM jobs.steps WHERE job = $1 ORDER BY position", job_id
    )
    return [Row(*row.values()) for row in found]


_PREPARE = """
INSERT INTO jobs.steps (job, position, name) SELECT $1, s.position, s.name FROM unnest($2::text[]) WITH ORDINALITY AS s (name, position)
ON CONFLICT (job, name) DO UPDATE SET position = excluded.position
"""
_BEGIN = """
UPDATE jobs.steps SET state = 'RUNNING', attempts = attempts + 1, start_time = jobs.clock(), end_time = NULL, error = ''
 WHERE job = $1 AND name = $2
"""
_END = "UPDATE jobs.steps SET state = $3, result = $4, error = $5, end_time = jobs.clock() WHERE job = $1 AND name = $2"


async def prepare(tx: Tx, job: Job, names: Sequence[str]) -> list[Row]:
    """Makes the steps known that this release has; those of an older one keep their state."""
    await _held(tx, job)
    await tx.execute(_PREPARE, job.id, list(names))
    return await of(tx, job.id)


async def begin(tx: Tx, job: Job, name: str) -> None:
    """A step begins; LeaseLost when the job is no longer ours."""
    await _held(tx, job)
    await tx.execute(_BEGIN, job.id, name)


async def end(tx: Tx, job: Job, name: str, *, result: Mapping[str, Any] | None = None, error: str | None = None) -> None:
    """A step ends, well unless there is an error; LeaseLost when the job is no longer ours."""
    await _held(tx, job)
    state = "SUCCEEDED" if error is None else "FAILED"
    await tx.execute(_END, job.id, name, state, None if result is None else dict(result), rows.storable(error or "")[:2000])


async def _held(tx: Tx, job: Job) -> None:
    if not await claims.holds(tx, job):
        raise LeaseLost
