"""Clockwork: starts schedules' jobs. Exactly one firing for each time, however many replicas look at the clock."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime

from libs import log
from libs.faults import Fault
from libs.jobs import metrics, schedule, store
from libs.jobs.domain import Order
from libs.jobs.kind import Kind
from libs.jobs.schedule import Row, Schedule
from libs.jobs.timetable import GRACE
from libs.pg import Database, Tx

POLL_SECONDS = 1.0
_log = log.get("libs.jobs")

_DUE = f"""
SELECT {schedule.COLUMNS} FROM jobs.schedules
 WHERE NOT disabled AND next_time <= jobs.clock() AND name <> ALL($1) ORDER BY next_time LIMIT 1 FOR UPDATE SKIP LOCKED
"""
# After the clock was set back, an interval is no longer away than it is long.
_CLAMP = """
UPDATE jobs.schedules SET due_time = jobs.clock(), next_time = jobs.clock()
 WHERE next_time > jobs.clock() + make_interval(secs => interval_seconds + jitter_seconds + 60)
"""
_CRONS = f"SELECT {schedule.COLUMNS} FROM jobs.schedules WHERE cron <> '' AND due_time > jobs.clock() FOR UPDATE SKIP LOCKED"
_DUE_AGAIN = "UPDATE jobs.schedules SET due_time = $2, next_time = $3 WHERE name = $1"
_ADVANCE = "UPDATE jobs.schedules SET last_time = jobs.clock(), due_time = $2, next_time = $3 WHERE name = $1"
_FIRED = """
INSERT INTO jobs.firings (schedule, due_time, start_time, outcome, jobs, message) VALUES ($1, $2, jobs.clock(), $3, $4, $5)
ON CONFLICT (schedule, due_time) DO UPDATE SET start_time = excluded.start_time, outcome = excluded.outcome, jobs = excluded.jobs,
    message = excluded.message WHERE firings.outcome = 'SKIPPED' AND excluded.outcome = 'STARTED' -- the clock came to it again
"""
_BUSY = """
SELECT target FROM jobs.jobs WHERE kind = $1 AND creator = $2 AND creator LIKE 'schedules/%' AND state IN ('QUEUED', 'RUNNING')
"""


class Clockwork:
    """Fires schedules.

    Args:
        kinds: those known; a schedule of another kind is left to the replica that knows it.
        schedules: those that come with this release.
    """

    def __init__(self, database: Database, kinds: Mapping[str, Kind], schedules: Sequence[Schedule]) -> None:
        self._database = database
        self._kinds = kinds
        self._schedules = {known.name: known for known in schedules}
        self._seen: datetime | None = None  # the engine's time at the last look

    async def run(self) -> None:
        """Works until cancelled; a failure is told and tried again."""
        ready = False
        while True:
            try:
                async with asyncio.timeout(60):
                    if not ready:
                        await self.publish()
                        ready = True
                    await self.once()
            except Exception as error:  # noqa: BLE001 -- the clock goes on
                _log.warning("schedules.failed", error=repr(error))
            await asyncio.sleep(POLL_SECONDS)

    async def publish(self) -> None:
        """Makes this release's schedules known."""
        async with self._database.transaction() as tx:
            for known in self._schedules.values():
                await schedule.put(tx, known)

    async def once(self) -> int:
        """Fires all that is due; how many firings."""
        fired = 0
        async with self._database.transaction() as tx:
            now = await schedule.clock(tx)
            if self._seen is None or now < self._seen:
                await self._turn_back(tx, now)
            self._seen = now
        passed: list[str] = []
        while True:
            known = len(passed)
            try:
                async with self._database.transaction() as tx:
                    record = await tx.row(_DUE, passed)
                    if record is None:
                        return fired
                    row = Row(*record.values())
                    passed.append(row.name)
                    fired += await self._fire(tx, row)
            except Exception as error:
                if len(passed) == known:
                    raise
                _log.error("schedule.broken", schedule=passed[-1], exc_info=error)  # the others must not wait for it

    async def _turn_back(self, tx: Tx, now: datetime) -> None:
        """After the clock was set back, or may have been: nothing is due later than it would be if it were asked for now."""
        await tx.execute(_CLAMP)
        for record in await tx.rows(_CRONS):
            row = Row(*record.values())
            due = row.timetable.after(now)
            if row.due_time is not None and due < row.due_time:
                await tx.execute(_DUE_AGAIN, row.name, due, row.timetable.start(due))

    async def run_now(self, tx: Tx, row: Row, key: str) -> list[str]:
        """Starts a schedule's jobs outside its timetable; their names."""
        jobs = await self._start(tx, row, f"run {key}")
        await tx.execute(_FIRED, row.name, await schedule.clock(tx), "MANUAL", len(jobs), f"asked for by {key}")
        return jobs

    async def _fire(self, tx: Tx, row: Row) -> int:
        if row.kind not in self._kinds or (row.built_in and row.name not in self._schedules):
            return 0  # another release's
        now, table = await schedule.clock(tx), row.timetable
        due = row.due_time or row.next_time
        dues = [due, *table.missed(due, now)]
        firing, skipped = _policy(row.missed_runs, dues, now)
        for time in skipped:
            await self._record(tx, row, time, "SKIPPED", message=f"missed, and the policy is {row.missed_runs}")
        for time in firing:
            await self._fire_one(tx, row, time)
        ahead = table.ahead(dues[-1], now)
        await tx.execute(_ADVANCE, row.name, ahead, table.start(ahead))
        return len(firing)

    async def _fire_one(self, tx: Tx, row: Row, due: datetime) -> None:
        try:
            jobs = await self._start(tx, row, due.isoformat())
        except Fault as fault:
            _log.warning("schedule.failed", schedule=row.name, error=str(fault))
            await self._record(tx, row, due, "FAILED", message=str(fault))
        else:
            await self._record(tx, row, due, "STARTED", jobs=len(jobs))

    async def _record(self, tx: Tx, row: Row, due: datetime, outcome: str, *, jobs: int = 0, message: str = "") -> None:
        metrics.MISSED.labels(outcome).inc()
        await tx.execute(_FIRED, row.name, due, outcome, jobs, message[:500])

    async def _start(self, tx: Tx, row: Row, tick: str) -> list[str]:
        """A target whose last job has not ended is passed over."""
        kind = self._kinds[row.kind]
        targets = await self._schedules[row.name].targets() if row.built_in else [row.target]
        busy = {found["target"] for found in await tx.rows(_BUSY, row.kind, f"schedules/{row.name}")}
        orders: list[Order] = [
            dataclasses.replace(
                kind.order(target, f"schedules/{row.name}", kind.parse(row.payload), idempotency_key=f"{row.name}/{target}/{tick}"),
                owner=row.owner,
            )
            for target in targets
            if target not in busy
        ]
        return [job.name for job in await store.enqueue_many(tx, orders)]


def _policy(missed: str, dues: list[datetime], now: datetime) -> tuple[list[datetime], list[datetime]]:
    """(times to fire, times to skip) of those that are due, oldest first."""
    if missed == "ALL":
        return dues, []
    if missed == "SKIP" and (len(dues) > 1 or now - dues[-1] > GRACE):
        late = now - dues[-1] > GRACE
        return ([], dues) if late else (dues[-1:], dues[:-1])
    return dues[-1:], dues[:-1]
