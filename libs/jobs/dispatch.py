"""Dispatcher: keeps a bounded window of messages in the work queue, takes dead runners' jobs back, keeps house.

Every worker runs one; a lock makes them take turns, so that fairness and the window hold for all together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from libs import log
from libs.bus import Bus, subjects
from libs.faults import Fault
from libs.jobs import claims, keep, metrics, queues, rows, tickets, window
from libs.jobs.kind import Kind
from libs.jobs.reconcile import Reconciler
from libs.jobs.runner import LEASE
from libs.jobs.window import Message
from libs.pg import Database

MOST = 2000  # messages under way at most, however fast jobs are done
POLL_SECONDS = 1.0
CHECK_SECONDS = 60.0
_PAUSE = 0.005
_SEND_SECONDS = 5.0
_RATE_SECONDS = 1.0
_log = log.get("libs.jobs")


class Dispatcher:
    """Feeds the work queue.

    Args:
        kinds: those that this release knows; jobs of others wait.
        window: messages under way at least; it grows with what is claimed in a second, so that it is never the limit.
        check_seconds: between two comparisons of database and stream.
        lease: the runners'.
        bundle: jobs of one message at most; `tickets.bundle` of the runners' concurrency.
    """

    def __init__(
        self, database: Database, bus: Bus, kinds: Mapping[str, Kind], *, window: int = 32, check_seconds: float = CHECK_SECONDS,
        lease: timedelta = LEASE, bundle: int = 1,
    ) -> None:  # fmt: skip
        self._database = database
        self._bus = bus
        self._kinds = sorted(kinds)
        self._queues = sorted({kind.queue for kind in kinds.values()} | {"default"})
        self._window = window
        self._check_seconds = check_seconds
        self._lease = lease
        self._bundle = bundle
        self._wake = asyncio.Event()
        self._news, self._released = True, 0.0  # something that waited may go on; when that was last looked at
        self._more = False  # more could be sent than there was room for
        self._reconciler = Reconciler(database, bus)
        self._claimed, self._rate, self._since = 0, 0, time.monotonic()

    def wake(self, *_: object) -> None:
        """Looks again now; for a PostgreSQL listener."""
        self._news = True
        self._wake.set()

    def claimed(self, count: int) -> None:
        """Jobs were claimed: there is room in the window, which matters when something waits for it."""
        self._claimed += count
        if self._more:
            self._wake.set()

    async def run(self) -> None:
        """Works until cancelled; a failure is told and tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop("dispatch", self._dispatch, _PAUSE), name="job dispatch")
            group.create_task(self._loop("reap", self._reap, POLL_SECONDS), name="job reaper")
            group.create_task(self._loop("check", self._check, self._check_seconds), name="job check")
            group.create_task(self._loop("housekeeping", self._house, 10.0), name="job housekeeping")

    async def _loop(self, what: str, work: Callable[[], Awaitable[None]], pause: float) -> None:
        task = asyncio.current_task()
        while task is None or not task.cancelling():  # wait_for of Python 3.11, as NATS' client uses it, may lose a cancel
            try:
                async with asyncio.timeout(60):
                    await work()
            except Exception as error:  # noqa: BLE001 -- the loop outlives a database or broker that is away
                _log.warning("jobs.round_failed", what=what, error=repr(error))
                await asyncio.sleep(0.3)
            await asyncio.sleep(pause)

    async def _dispatch(self) -> None:
        if not await self.once():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()

    async def once(self) -> int:
        """One round: sends what may be sent. How many jobs."""
        self._wake.clear()
        size, now = self.size, time.monotonic()
        news = self._news or now - self._released >= POLL_SECONDS  # what waits for its time has no other voice
        if news:
            self._news, self._released = False, now
        async with self._database.transaction() as tx:
            taken = await window.take(tx, window=size, known=self._kinds, least=max(1, size // 4), releasing=news)
        self._more = taken.more
        if taken.messages:
            await self._send(taken.messages)
        return len(taken.messages)

    @property
    def size(self) -> int:
        """Messages under way at most, just now."""
        now = time.monotonic()
        if now - self._since > _RATE_SECONDS:
            self._rate = int(self._claimed / (now - self._since))
            self._claimed, self._since = 0, now
        return max(self._window, min(max(self._rate, self._claimed), MOST))

    async def _send(self, sending: list[Message]) -> None:
        """Over one connection, so in order: the broker's word for the last one holds for all."""
        together = min(self._bundle, 1 + len(sending) // 16)
        *most, (queue, last) = [(subjects.jobs(queue), data) for queue, data in tickets.bundles(sending, together)]
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._bus.hints(most, type_=tickets.TYPE, seconds=_SEND_SECONDS)
                await self._bus.publish_bytes(queue, last, type_=tickets.TYPE, seconds=_SEND_SECONDS)
        except (Fault, TimeoutError) as error:
            _log.warning("jobs.not_sent", count=len(sending), error=str(error))
            async with self._database.transaction() as tx:
                await window.unsent(tx, [(message.job, message.dispatch) for message in sending])
            await asyncio.sleep(0.5)

    async def _reap(self) -> None:
        async with self._database.transaction() as tx:
            await window.clamp(tx, self._lease)
            taken_back = await claims.reap(tx)
            if taken_back:
                await rows.wake(tx)
        if taken_back:
            metrics.TAKEN_BACK.inc(len(taken_back))
            _log.warning("jobs.taken_back", count=len(taken_back))

    async def _check(self) -> None:
        if any(await self._reconciler.once()):
            self.wake()

    async def _house(self) -> None:
        async with self._database.transaction() as tx:
            await queues.make(tx, self._queues)
            await keep.sweep(tx)
            metrics.show(await queues.figures(tx))
