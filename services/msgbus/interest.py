"""Interest: tells the gateway which kinds beyond the base set are watched here, and agents that there is something to ask."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from kubegems.agent.v1.events_pb2 import InterestHint
from libs import log
from libs.bus import Bus, subjects
from libs.faults import Fault
from services.msgbus.domain import kind_keys
from services.msgbus.hub import Hub

LOOK_SECONDS = 0.5  # a new subscriber waits for its kind about so long, and then for the agent's list
REPEAT_SECONDS = 15.0  # the gateway keeps a report for a minute
_MOST = 256
_log = log.get("services.msgbus")
Report = Callable[[str, dict[str, list[str]]], Awaitable[None]]


class Interest:
    """Reports at every change and again and again.

    Args:
        hub: who watches what.
        bus: for hints.
        report: ClusterAccessService.ReportInterest of a replica: kinds by cluster uid.
        replica: this one's id.
    """

    def __init__(self, hub: Hub, bus: Bus, report: Report, replica: str) -> None:
        self._hub, self._bus, self._report, self._replica = hub, bus, report, replica
        self._reported: dict[str, list[str]] = {}
        self._at = -REPEAT_SECONDS

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.once()
            except Fault as fault:
                _log.warning("interest.not_reported", reason=fault.reason)
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter

    async def once(self) -> None:
        """Reports when something changed or the last report is old."""
        now = asyncio.get_running_loop().time()
        wanted = {uid: list(kind_keys(kinds))[:_MOST] for uid, kinds in self._hub.interest().items()}
        if wanted == self._reported and (now - self._at < REPEAT_SECONDS or not wanted):
            return
        await self._report(self._replica, wanted)
        changed = [uid for uid in {*wanted, *self._reported} if set(wanted.get(uid, ())) != set(self._reported.get(uid, ()))]
        self._reported, self._at = wanted, now
        for uid in changed:
            await self._bus.hint(subjects.interest(uid), InterestHint())

    async def withdraw(self) -> None:
        """Says that nobody watches here any more; for the end of the service."""
        if self._reported:
            await self._report(self._replica, {})
