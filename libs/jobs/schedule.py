"""Schedules as rows: those that come with a release, and those that admins make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from libs.jobs.timetable import Timetable
from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part

Targets = Callable[[], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule that comes with a release: a kind of job, started for each of its targets.

    Attributes:
        targets: finds them when it fires.
        interval: between two times; None with a cron.
        missed: `SKIP`, `ONCE` or `ALL`.
    """

    name: str
    kind: str
    targets: Targets
    interval: timedelta | None = None
    cron: str = ""
    zone: str = "UTC"
    jitter: timedelta = timedelta()
    missed: str = "ONCE"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of jobs.schedules."""

    name: str
    kind: str
    interval_seconds: int | None
    cron: str
    time_zone: str
    jitter_seconds: int
    missed_runs: str
    disabled: bool
    target: str
    payload: Mapping[str, Any]
    owner: str
    built_in: bool
    version: int
    due_time: datetime | None
    next_time: datetime
    last_time: datetime | None

    @property
    def timetable(self) -> Timetable:
        """When it is due."""
        interval = None if self.interval_seconds is None else timedelta(seconds=self.interval_seconds)
        return Timetable(self.name, interval, self.cron, self.time_zone, timedelta(seconds=self.jitter_seconds))


COLUMNS = """name, kind, interval_seconds, cron, time_zone, jitter_seconds, missed_runs, disabled, target, payload, owner, built_in,
              version, due_time, next_time, last_time"""


def row_of(record: Record) -> Row:
    """From a row with COLUMNS."""
    return Row(*record.values())


_PUT = """
INSERT INTO jobs.schedules (name, kind, interval_seconds, cron, time_zone, jitter_seconds, missed_runs, built_in, due_time, next_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, true, $8, $9)
ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, interval_seconds = excluded.interval_seconds, cron = excluded.cron,
    time_zone = excluded.time_zone, jitter_seconds = excluded.jitter_seconds, missed_runs = excluded.missed_runs, built_in = true,
    due_time = excluded.due_time, next_time = excluded.next_time
    WHERE (jobs.schedules.kind, jobs.schedules.interval_seconds, jobs.schedules.cron, jobs.schedules.time_zone,
           jobs.schedules.jitter_seconds, jobs.schedules.missed_runs)
          IS DISTINCT FROM (excluded.kind, excluded.interval_seconds, excluded.cron, excluded.time_zone, excluded.jitter_seconds,
           excluded.missed_runs)
"""


async def put(tx: Tx, schedule: Schedule) -> None:
    """Makes a schedule of this release known; its next time stays unless its timetable is another."""
    seconds = None if schedule.interval is None else int(schedule.interval.total_seconds())
    table = Timetable(schedule.name, schedule.interval, schedule.cron, schedule.zone, schedule.jitter)
    table.check()
    now = await clock(tx)
    due = now if schedule.interval is not None else table.after(now)
    await tx.execute(
        _PUT, schedule.name, schedule.kind, seconds, schedule.cron, schedule.zone, int(schedule.jitter.total_seconds()), schedule.missed,
        due, table.start(due),
    )  # fmt: skip


async def clock(tx: Tx) -> datetime:
    """The engine's time."""
    now: datetime = await tx.value("SELECT jobs.clock()")
    return now.astimezone(UTC)


SOURCE = Source(
    select=f"SELECT {COLUMNS} FROM jobs.schedules",
    filters={
        "name": "'schedules/' || name",
        "kind": "kind",
        "target": "target",
        "owner": "owner",
        "disabled": Column("disabled", "bool"),
        "built_in": Column("built_in", "bool"),
        "next_time": Column("next_time", "time"),
        "last_time": Column("last_time", "time", nullable=True),
    },
    orders={
        "name": (Part("name", "name"),),
        "kind": (Part("kind", "kind"),),
        "next_time": (Part("next_time", "next_time", "time"),),
        "last_time": (Part("last_time", "last_time", "time", nullable=True),),
    },
    key=(Part("name", "name"),),
    default="name",
)


async def get(tx: Tx, name: str, *, lock: bool = False) -> Row | None:
    """A schedule."""
    row = await tx.row(f"SELECT {COLUMNS} FROM jobs.schedules WHERE name = $1" + (" FOR UPDATE" if lock else ""), name)
    return None if row is None else row_of(row)


_CREATE = f"""
INSERT INTO jobs.schedules (name, kind, interval_seconds, cron, time_zone, jitter_seconds, missed_runs, disabled, target, payload, owner,
                            due_time, next_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (name) DO NOTHING RETURNING {COLUMNS}
"""


async def create(tx: Tx, row: Row) -> Row | None:
    """Makes a schedule; None when the name is in use."""
    due, start = await upcoming(tx, row)
    made = await tx.row(
        _CREATE, row.name, row.kind, row.interval_seconds, row.cron, row.time_zone, row.jitter_seconds, row.missed_runs, row.disabled,
        row.target, dict(row.payload), row.owner, due, start,
    )  # fmt: skip
    return None if made is None else row_of(made)


_UPDATE = f"""
UPDATE jobs.schedules SET interval_seconds = $2, cron = $3, time_zone = $4, jitter_seconds = $5, missed_runs = $6, disabled = $7,
       payload = $8, due_time = $9, next_time = $10, version = version + 1
 WHERE name = $1 RETURNING {COLUMNS}
"""


async def update(tx: Tx, row: Row) -> Row:
    """Changes a schedule that is locked; what it missed while it was disabled is not made up for."""
    due, start = await upcoming(tx, row)
    made = await tx.row(
        _UPDATE, row.name, row.interval_seconds, row.cron, row.time_zone, row.jitter_seconds, row.missed_runs, row.disabled,
        dict(row.payload), due, start,
    )  # fmt: skip
    assert made is not None
    return row_of(made)


async def upcoming(tx: Tx, row: Row) -> tuple[datetime, datetime]:
    """The next time that a timetable is due from now on, and its start."""
    due = row.timetable.after(await clock(tx))
    return due, row.timetable.start(due)


async def delete(tx: Tx, name: str) -> None:
    """Removes a schedule with its history."""
    await tx.execute("DELETE FROM jobs.firings WHERE schedule = $1", name)
    await tx.execute("DELETE FROM jobs.schedules WHERE name = $1", name)


@dataclass(frozen=True, slots=True)
class Firing:
    """A row of jobs.firings."""

    due_time: datetime
    start_time: datetime
    outcome: str
    jobs: int
    message: str


FIRINGS = Source(
    select="SELECT due_time, start_time, outcome, jobs, message FROM jobs.firings",
    filters={
        "outcome": Column("outcome", values=("STARTED", "SKIPPED", "MANUAL", "FAILED")),
        "due_time": Column("due_time", "time"),
        "start_time": Column("start_time", "time"),
        "jobs": Column("jobs", "int"),
    },
    orders={
        "due_time": (Part("due_time", "due_time", "time"),),
        "start_time": (Part("start_time", "start_time", "time"),),
        "outcome": (Part("outcome", "outcome"),),
    },
    key=(Part("due_time", "due_time", "time"),),
    default="due_time desc",
)


async def firings(tx: Tx, name: str, *, limit: int) -> list[Firing]:
    """The latest runs of a schedule, newest first."""
    sql = f"{FIRINGS.select} WHERE schedule = $1 ORDER BY due_time DESC LIMIT $2"
    return [Firing(*row.values()) for row in await tx.rows(sql, name, limit)]
