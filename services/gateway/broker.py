"""Keeps the broker's streams: the hub's, and one for each cluster, made before its agent has anything to publish."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from libs import log
from libs.bus import Bus, streams
from libs.faults import Fault
from libs.pg import Database

_EVERY = 30.0  # seconds; a broker that lost its store gets its streams back within that time
_AGAIN = 2.0
_log = log.get("services.gateway.broker")
PutOut = Callable[[str], Awaitable[object]]


async def _nobody(_uid: str) -> None:
    """No one is connected."""


class Streams:
    """Makes what is missing, again and again; `run` it, and `wake` it when a cluster comes or goes.

    Args:
        bus: the broker.
        database: where clusters are.
        put_out: ends the broker's connections of a cluster (uid).
    """

    def __init__(self, bus: Bus, database: Database, *, put_out: PutOut = _nobody) -> None:
        self._bus, self._database, self._put_out = bus, database, put_out
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
            await self._cleaned()
        except (Fault, OSError, TimeoutError) as error:
            _log.warning("broker.streams_not_ensured", problem=str(error))
            return False
        return True

    async def _cleaned(self) -> None:
        """Ends the connections of clusters that were removed and takes their streams away, once each."""
        async with self._database.transaction(readonly=True) as tx:
            gone = [row["uid"] for row in await tx.rows("SELECT uid FROM fleet.removed_clusters WHERE cleaned IS NULL ORDER BY removed")]
        for uid in gone:
            await self._put_out(str(uid))
            await self._bus.delete_stream(streams.cluster(str(uid)).name)
            async with self._database.transaction() as tx:
                await tx.execute("UPDATE fleet.removed_clusters SET cleaned = now() WHERE uid = $1", uid)
            _log.info("broker.cluster_cleaned", cluster_uid=str(uid))
