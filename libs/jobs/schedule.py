"""Schedules: jobs that start by themselves, once per tick however many workers there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.jobs import store
from libs.jobs.domain import Kind
from libs.pg import Tx

Targets = Callable[[], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A kind of job, started for each of its targets at an interval."""

    name: str
    kind: str
    interval: timedelta
    targets: Targets


@dataclass(frozen=True, slots=True)
class Row:
    """A row of jobs.schedules."""

    name: str
    kind: str
    interval_seconds: int
    next_time: datetime
    last_time: datetime | None


_PUT = """
INSERT INTO jobs.schedules (name, kind, interval_seconds) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, interval_seconds = excluded.interval_seconds
"""


async def put(tx: Tx, schedule: Schedule) -> None:
    """Makes a schedule known; its next start stays."""
    await tx.execute(_PUT, schedule.name, schedule.kind, int(schedule.interval.total_seconds()))


async def page(tx: Tx, *, after: str, limit: int) -> list[Row]:
    """Schedules by name."""
    rows = await tx.rows(
        "SELECT name, kind, interval_seconds, next_time, last_time FROM jobs.schedules WHERE name > $1 ORDER BY name LIMIT $2", after, limit
    )
    return [Row(**dict(row.items())) for row in rows]


_DUE = """
SELECT name, next_time FROM jobs.schedules WHERE next_time <= now() ORDER BY next_time LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_ADVANCE = """
UPDATE jobs.schedules SET last_time = now(), next_time = greatest(next_time + make_interval(secs => interval_seconds), now())
 WHERE name = $1
"""


async def due(tx: Tx) -> tuple[str, datetime] | None:
    """The name and tick of a schedule that is due, locked and moved on; None when none is."""
    row = await tx.row(_DUE)
    if row is None:
        return None
    await tx.execute(_ADVANCE, row["name"])
    return row["name"], row["next_time"]


async def start(tx: Tx, schedule: Schedule, kinds: Mapping[str, Kind], targets: Sequence[str], tick: str) -> list[str]:
    """Starts a schedule's jobs for one tick; a target whose last job has not ended is passed over. Names of the jobs."""
    kind = kinds[schedule.kind]
    waiting = {
        row["target"]
        for row in await tx.rows("SELECT target FROM jobs.jobs WHERE kind = $1 AND state IN ('QUEUED', 'RUNNING')", schedule.kind)
    }
    started = []
    for target in targets:
        if target in waiting:
            continue
        job = await store.enqueue(
            tx,
            kind=kind.name,
            target=target,
            creator=f"schedules/{schedule.name}",
            max_attempts=kind.max_attempts,
            unique_key=f"{schedule.name}/{target}/{tick}",
        )
        started += [job.name] if job else []
    return started
