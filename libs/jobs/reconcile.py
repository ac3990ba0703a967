"""Compares database and stream, and repairs both ways: a lost message is sent again, one that nobody waits for is removed."""

from __future__ import annotations

import uuid

from libs import log
from libs.bus import Bus, streams
from libs.jobs import metrics, tickets, window
from libs.pg import Database

_MOST_REMOVED = 2000
_log = log.get("libs.jobs")


class Reconciler:
    """One comparison at a time.

    A row whose message is missing is only believed when it was missing the last time too, under the same number: the
    first time it may be on its way. No clock is asked.
    """

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._missing: set[tuple[uuid.UUID, int]] = set()

    async def once(self) -> tuple[int, int]:
        """(messages to be sent again, messages removed). Raises Unavailable when one of the two is away."""
        stored = {seq: _tickets(data) for seq, data in (await self._bus.stored(streams.JOBS.name)).items()}
        async with self._database.transaction() as tx:
            sent = await window.sent(tx)
            missing = set(sent.items()) - {ticket for found in stored.values() for ticket in found}
            lost = list(missing & self._missing)
            again = await window.unsent(tx, lost)
        self._missing = missing - set(lost)
        stale = [seq for seq, found in stored.items() if all(sent.get(job) != dispatch for job, dispatch in found)][:_MOST_REMOVED]
        for sequence in stale:
            await self._bus.remove(streams.JOBS.name, sequence)
        self._tell(again, len(stale))
        return again, len(stale)

    def _tell(self, again: int, removed: int) -> None:
        metrics.LAST_CHECK.set_to_current_time()
        metrics.REPAIRED.labels("lost").inc(again)
        metrics.REPAIRED.labels("stale").inc(removed)
        if again or removed:
            _log.warning("jobs.repaired", sent_again=again, removed=removed)


def _tickets(data: bytes) -> list[tickets.Ticket]:
    try:
        return tickets.parse(data)
    except ValueError:
        return []
