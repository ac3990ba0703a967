"""Tells agents that there is something to fetch: a NATS message right after the commit, again while an agent lags behind.

A hint may be lost (NATS or this process down in between); so clusters that are online and behind are hinted again every
few seconds, and agents fetch on every new link anyway.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from libs import log
from libs.faults import Fault
from libs.log import trace
from libs.pg import Database
from services.gateway.fleet.desired import CHANNEL

_log = log.get("services.gateway.fleet")
_EVERY = 3.0  # seconds between looks for clusters that lag
_LONGEST = 60.0  # seconds between hints of one generation: an agent that cannot apply it has a back-off of its own

Send = Callable[[str, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Lag:
    """A generation that an agent has not applied: when it is hinted again, and how long to wait after that."""

    generation: int
    due: float
    delay: float


class Hints:
    """Sends hints.

    Args:
        database: where the sets are.
        send: publishes a DesiredStateHint for a cluster's uid and a generation; raises Fault or OSError when it cannot.
        here: whether this gateway holds a cluster's tunnel; the one that does hints, so that each hint is sent once.
    """

    def __init__(self, database: Database, send: Send, *, every: float = _EVERY, here: Callable[[str], bool] = lambda _: True) -> None:
        self._database = database
        self._send = send
        self._every = every
        self._here = here
        self._due: dict[str, tuple[int, str]] = {}
        self._woken = asyncio.Event()
        self._lagging: dict[str, _Lag] = {}

    async def run(self) -> None:
        """Sends for ever; give it to a life."""
        await self._database.listen(CHANNEL, self._heard)
        while True:
            await self._send_due()
            try:
                async with asyncio.timeout(self._every * random.uniform(0.8, 1.2)):  # noqa: S311 -- jitter
                    await self._woken.wait()
            except TimeoutError:
                await self._look()

    def _heard(self, payload: str) -> None:
        """One change: `{cluster uid} {generation} {traceparent}`; empty after a connect."""
        uid, _, rest = payload.partition(" ")
        generation, _, traceparent = rest.partition(" ")
        if generation.isdigit() and self._here(uid):
            self._due[uid] = (max(int(generation), self._due.get(uid, (0, ""))[0]), traceparent)
        self._woken.set()

    async def _look(self) -> None:
        try:
            async with self._database.transaction(readonly=True) as tx:
                rows = await tx.rows(
                    "SELECT d.cluster_uid, d.generation FROM fleet.desired d JOIN fleet.clusters c ON c.uid = d.cluster_uid"
                    " WHERE c.online AND d.generation > c.applied_generation AND c.confirmation_needed = '' AND NOT c.paused"
                )
        except Fault as fault:
            _log.warning("hints.not_read", problem=str(fault))
            return
        now, before = asyncio.get_running_loop().time(), self._lagging
        self._lagging = {}
        for row in rows:
            uid, generation = str(row["cluster_uid"]), int(row["generation"])
            if not self._here(uid):
                continue
            lag = before.get(uid)
            if lag is None or lag.generation != generation:
                lag = _Lag(generation, now, self._every)
            if now >= lag.due:
                self._due.setdefault(uid, (generation, ""))
                lag = _Lag(generation, now + lag.delay, min(lag.delay * 2, _LONGEST))
            self._lagging[uid] = lag

    async def _send_due(self) -> None:
        self._woken.clear()
        due, self._due = self._due, {}
        for uid, (generation, traceparent) in due.items():
            try:
                with trace.span("desired.hint", parent=traceparent or None, kind=trace.SpanKind.PRODUCER):
                    await self._send(uid, generation)
            except (Fault, OSError, TimeoutError) as error:
                _log.warning("hint.not_sent", cluster_uid=uid, problem=str(error))  # the next look sends it again
