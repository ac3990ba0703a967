"""Dispatcher: keeps a bounded window of messages in the work queue, takes dead runners' jobs back, starts schedules.

Any number of workers may run one; row locks share the work. A message that is lost is sent again after `LOST_AFTER`;
one that arrives twice or late is refused by the claim.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta

from kubegems.jobs.v1 import events_pb2
from libs import log
from libs.bus import Bus, subjects
from libs.faults import Fault
from libs.jobs import schedule, store
from libs.jobs.domain import Kind
from libs.pg import Database

WINDOW = 200  # messages under way; the backlog stays in PostgreSQL, where order and fairness are decided
LOST_AFTER = timedelta(seconds=30)
POLL_SECONDS = 1.0
PUBLISH_SECONDS = 5.0
_log = log.get("libs.jobs")


class Dispatcher:
    """Feeds the work queue."""

    def __init__(self, database: Database, bus: Bus, kinds: Mapping[str, Kind], schedules: Sequence[schedule.Schedule]) -> None:
        self._database = database
        self._bus = bus
        self._kinds = kinds
        self._schedules = {s.name: s for s in schedules}
        self._wake = asyncio.Event()

    def wake(self, *_: object) -> None:
        """Looks again now; for a PostgreSQL listener."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled; a failure is told and tried again at the next poll."""
        async with self._database.transaction() as tx:
            for known in self._schedules.values():
                await schedule.put(tx, known)
        while True:
            try:
                async with asyncio.timeout(60):
                    await self.once()
            except Exception as error:  # noqa: BLE001 -- the loop outlives a database or broker that is away
                _log.warning("jobs.dispatch_failed", error=repr(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
            self._wake.clear()

    async def once(self) -> int:
        """One round: reap, start what is due, send what may be sent. How many messages."""
        async with self._database.transaction() as tx:
            if taken_back := await store.reap(tx):
                _log.warning("jobs.taken_back", count=taken_back)
        await self._start_due()
        async with self._database.transaction() as tx:
            sending = await store.take_for_dispatch(tx, window=WINDOW, lost_after=LOST_AFTER)
        for job, queue, attempt, dispatch in sending:
            message = events_pb2.JobDispatch(job=str(job), attempt=attempt, dispatch=dispatch)
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._bus.publish(subjects.jobs(queue), message, id=f"{job}.{dispatch}")
        return len(sending)

    async def _start_due(self) -> None:
        for _ in range(len(self._schedules)):
            async with self._database.transaction() as tx:
                found = await schedule.due(tx)
                if found is None:
                    return
                name, tick = found
                if name not in self._schedules:
                    continue
                try:
                    targets = await self._schedules[name].targets()
                except Fault as fault:
                    _log.warning("schedule.targets_unknown", schedule=name, error=str(fault))
                    continue
                await schedule.start(tx, self._schedules[name], self._kinds, targets, tick.isoformat())
