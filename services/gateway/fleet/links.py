"""Keeps what the tunnels tell: which agents are connected, and to which gateway.

A cluster's row belongs to the gateway that has its newest tunnel: an older tunnel's end changes nothing. Gateways show
in `fleet.gateways` that they live; what one that fell silent held is marked offline by the others, unless an agent has
come back by then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from uuid import UUID

from kubegems.fleet.v1 import events_pb2
from libs import log
from libs.bus import subjects
from libs.clock import Clock
from libs.faults import Fault
from libs.pg import Database, Tx, outbox
from services.gateway.fleet import health_store

_SCHEMA = "fleet"
_BEAT = 2.0  # seconds between signs of life
_LAPSE = 6.0  # seconds after which a silent gateway is gone
_log = log.get("services.gateway.fleet")


class LinkKeeper:
    """Writes link changes to the clusters' rows, and tells of them on `gems.platform.fleet.link-changed`.

    Args:
        database: where clusters are.
        clock: the time.
        gateway: id of this gateway's process.
        on_forgotten: called when the others took this gateway for gone: what it holds must be told again.
    """

    def __init__(self, database: Database, clock: Clock, gateway: str = "", *, on_forgotten: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self._clock = clock
        self._gateway = gateway
        self._on_forgotten = on_forgotten
        self._beats_since: float | None = None
        self._last_beat = 0.0

    async def start(self) -> None:
        """Takes part: from now on the others rely on `run`."""
        async with self._database.transaction() as tx:
            await tx.execute("INSERT INTO fleet.gateways (id) VALUES ($1) ON CONFLICT DO NOTHING", self._gateway)

    async def run(self) -> None:
        """Shows that this gateway lives and looks after those that do not; until cancelled."""
        while True:
            try:
                await self.beat()
                if self.may_judge():
                    await self.lapsed()
            except (Fault, OSError, TimeoutError) as error:
                self._beats_since = None
                _log.warning("gateway.not_shown", problem=str(error))
            await asyncio.sleep(_BEAT * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter

    async def beat(self) -> None:
        """Shows that this gateway lives."""
        async with self._database.transaction() as tx:
            known = await tx.execute("UPDATE fleet.gateways SET seen = clock_timestamp() WHERE id = $1", self._gateway)
            if not known:
                await tx.execute("INSERT INTO fleet.gateways (id) VALUES ($1) ON CONFLICT DO NOTHING", self._gateway)
        now = self._clock.monotonic()
        if self._beats_since is None or now - self._last_beat > _LAPSE / 2:
            self._beats_since = now  # the database or this process stood still, so perhaps the others could not show themselves either
        self._last_beat = now
        if not known:
            _log.warning("gateway.forgotten", gateway=self._gateway)
            self._on_forgotten()

    async def lapsed(self) -> int:
        """Marks offline what gateways held that are gone; how many clusters."""
        async with self._database.transaction() as tx:
            await tx.execute("DELETE FROM fleet.gateways WHERE seen < clock_timestamp() - make_interval(secs => $1)", _LAPSE)
            return await self._offline(tx, "NOT EXISTS (SELECT FROM fleet.gateways g WHERE g.id = c.holder)")

    async def leave(self) -> None:
        """This gateway stops: whatever it still held is offline."""
        async with self._database.transaction() as tx:
            await tx.execute("DELETE FROM fleet.gateways WHERE id = $1", self._gateway)
            await self._offline(tx, "c.holder = $1", self._gateway)

    async def number(self) -> int:
        """The next tunnel's number: it rises over all gateways, after a restore from a backup and when the clock goes back too."""
        async with self._database.transaction() as tx:
            await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended('fleet tunnel numbers', 0))")
            return int(await tx.value(_NUMBER))

    async def changed(self, uid: str, online: bool, version: str = "", number: int = 0) -> None:  # noqa: FBT001 -- the tunnel's callback
        """A tunnel came or went; nothing when a newer one is known."""
        async with self._database.transaction() as tx:
            row = await tx.row(_CHANGED, UUID(uid), online, version, self._clock.now(), number, self._gateway)
            if row is not None and (row["was_online"], row["was_version"]) != (online, version or row["was_version"]):
                await _tell(tx, UUID(uid), row["name"], online=online)
                await health_store.judge(tx, self._clock.now(), [UUID(uid)])

    def may_judge(self) -> bool:
        """Whether signs of life came and went long enough for silence to mean something."""
        return self._beats_since is not None and self._clock.monotonic() - self._beats_since >= _LAPSE

    async def _offline(self, tx: Tx, where: str, *args: str) -> int:
        rows = await tx.rows(f"UPDATE fleet.clusters c SET online = false WHERE c.online AND {where} RETURNING uid, name", *args)
        for row in rows:
            await _tell(tx, row["uid"], row["name"], online=False)
        if rows:
            await health_store.judge(tx, self._clock.now(), [row["uid"] for row in rows])
        return len(rows)


async def _tell(tx: Tx, uid: UUID, name: str, *, online: bool) -> None:
    event = events_pb2.ClusterLinkChanged(cluster=f"clusters/{name}", uid=str(uid), online=online)
    await outbox.publish(tx, _SCHEMA, subjects.platform("fleet", "link-changed"), event)


_NUMBER = """
SELECT setval('fleet.tunnel_numbers', greatest(nextval('fleet.tunnel_numbers'),
                                               (extract(epoch FROM clock_timestamp()) * 1000)::bigint * 4096))
"""
_CHANGED = """
WITH before AS (SELECT uid, online, agent_version FROM fleet.clusters WHERE uid = $1 FOR NO KEY UPDATE)
UPDATE fleet.clusters c SET online = $2, joined = c.joined OR $2, seen = $4, tunnel = $5, holder = CASE WHEN $2 THEN $6 ELSE c.holder END,
       agent_version = CASE WHEN $3 = '' THEN c.agent_version ELSE $3 END
  FROM before WHERE c.uid = before.uid AND CASE WHEN $2 THEN c.tunnel <= $5 ELSE c.tunnel = $5 AND c.online END
RETURNING c.name, before.online AS was_online, before.agent_version AS was_version
"""
