"""Looks after clusters' health: measures, judges, and puts out whom the hub no longer knows."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import UUID

from libs import log
from libs.clock import Clock
from libs.faults import Fault
from libs.pg import Database
from services.gateway.fleet import certificates_store, health_store
from services.gateway.fleet.health_store import Measure
from services.gateway.fleet.removal import CHANNEL

_EVERY = 2.0  # seconds; a revoked certificate's tunnel ends within 5
_JUDGE_EVERY = 10.0
_log = log.get("services.gateway.fleet")


class Tunnels(Protocol):
    """The tunnels of this gateway."""

    def measures(self) -> Mapping[str, Measure]:
        """What each tells of itself, by cluster uid."""
        ...

    def serials(self) -> Mapping[str, str]:
        """Serial number (hex) of the certificate of each, by cluster uid."""
        ...

    def numbers(self) -> Mapping[str, int]:
        """Number of each, by cluster uid."""
        ...

    def disconnect(self, uid: str, why: str) -> bool:
        """Drops one."""
        ...

    def superseded(self, uid: str, number: int) -> None:
        """Another gateway has a newer one."""
        ...


class HealthKeeper:
    """Runs beside the tunnels of one gateway.

    Args:
        database: where clusters are.
        tunnels: this gateway's.
        clock: the time.
        on_removed: called when a cluster was removed or certificates revoked, so that what is left of them can be cleaned up at once.
    """

    def __init__(
        self, database: Database, tunnels: Tunnels, clock: Clock, *, on_removed: Callable[[], None] = lambda: None, every: float = _EVERY
    ) -> None:
        self._database, self._tunnels, self._clock = database, tunnels, clock
        self._on_removed = on_removed
        self._every = every
        self._woken = asyncio.Event()
        self._judged = -_JUDGE_EVERY
        self._noted: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        await self._database.listen(CHANNEL, self._heard)
        while True:
            self._woken.clear()
            try:
                await self.put_out()
                await self.note()
                await self.look()
            except (Fault, OSError, TimeoutError) as error:
                _log.warning("health.not_kept", problem=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every * random.uniform(0.8, 1.2)):  # noqa: S311 -- jitter
                    await self._woken.wait()

    async def put_out(self) -> int:
        """Ends the tunnels of certificates that are no longer good; how many. Those that are not the newest any more end too."""
        held = self._tunnels.serials()
        if not held:
            return 0
        async with self._database.transaction(readonly=True) as tx:
            refused = await certificates_store.refused(tx, held.items())
            newer = await certificates_store.superseded(tx, self._tunnels.numbers())
        for uid, number in newer.items():
            self._tunnels.superseded(uid, number)
        return sum(self._tunnels.disconnect(uid, "the certificate was revoked, or the cluster removed") for uid, _ in refused)

    async def note(self) -> None:
        """Keeps which certificates agents are seen with, each once."""
        held = set(self._tunnels.serials().values())
        if new := held - self._noted:
            async with self._database.transaction() as tx:
                await certificates_store.seen(tx, new, self._clock.now())
        self._noted = held

    async def look(self) -> None:
        """Keeps the measures and judges, unless that was done a moment ago."""
        if self._clock.monotonic() - self._judged < _JUDGE_EVERY:
            return
        self._judged = self._clock.monotonic()
        async with self._database.transaction() as tx:
            now = self._clock.now()
            await health_store.measured(tx, self._tunnels.measures(), now)
            await health_store.judge(tx, now)

    def _heard(self, payload: str) -> None:
        """A cluster was removed; empty after a connect."""
        with contextlib.suppress(ValueError):
            self._tunnels.disconnect(str(UUID(payload)), "the cluster was removed")
        self._on_removed()
        self._woken.set()
