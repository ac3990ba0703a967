"""Keeps the broker's streams: the hub's, and one for each cluster, made before its agent has anything to publish."""

from __future__ import annotations

import asyncio
import random

from libs import log
from libs.bus import Bus, streams
from libs.faults import Fault
from libs.pg import Database

_EVERY = 30.0  # seconds; a broker that lost its store gets its streams back within that time
_AGAIN = 2.0
_log = log.get("services.gateway.broker")


class Streams:
    """Makes what is missing, again and again; `run` it, and `wake` it when a cluster comes."""

    def __init__(self, bus: Bus, database: Database) -> None:
        self._bus, self._database = bus, database
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Looks at once."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._woken.clear()
            pause = _EVERY if await self._ensured() else _AGAIN
            try:
                async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):  # noqa: S311 -- jitter
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _ensured(self) -> bool:
        try:
            async with self._database.transaction(readonly=True) as tx:
                clusters = [str(row["uid"]) for row in await tx.rows("SELECT uid FROM fleet.clusters")]
            for stream in (*streams.HUB, *map(streams.cluster, clusters)):
                await self._bus.ensure_stream(stream)
        except (Fault, OSError, TimeoutError) as error:
            _log.warning("broker.streams_not_ensured", problem=str(error))
            return False
        return True
