"""Keeps what the tunnel tells: which agents are connected."""

from __future__ import annotations

from uuid import UUID

from kubegems.fleet.v1 import events_pb2
from libs.bus import subjects
from libs.clock import Clock
from libs.pg import Database, Tx, outbox
from services.gateway.fleet import health_store

_SCHEMA = "fleet"


class LinkKeeper:
    """Writes link changes to the clusters' rows, and tells of them on `gems.platform.fleet.link-changed`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def start(self) -> None:
        """Marks every cluster offline: what an earlier process knew is over, and agents that live connect again."""
        async with self._database.transaction() as tx:
            for row in await tx.rows("UPDATE fleet.clusters SET online = false WHERE online RETURNING uid, name"):
                await _tell(tx, row["uid"], row["name"], online=False)
            await health_store.judge(tx, self._clock.now())

    async def changed(self, uid: str, online: bool, version: str = "") -> None:  # noqa: FBT001 -- the tunnel's callback
        """An agent came or went."""
        async with self._database.transaction() as tx:
            name = await tx.value(
                "UPDATE fleet.clusters SET online = $2, joined = joined OR $2, seen = $4,"
                " agent_version = CASE WHEN $3 = '' THEN agent_version ELSE $3 END"
                " WHERE uid = $1 AND (online <> $2 OR ($3 <> '' AND agent_version <> $3)) RETURNING name",
                UUID(uid), online, version, self._clock.now(),
            )  # fmt: skip
            if name is not None:
                await _tell(tx, UUID(uid), name, online=online)
                await health_store.judge(tx, self._clock.now(), [UUID(uid)])


async def _tell(tx: Tx, uid: UUID, name: str, *, online: bool) -> None:
    event = events_pb2.ClusterLinkChanged(cluster=f"clusters/{name}", uid=str(uid), online=online)
    await outbox.publish(tx, _SCHEMA, subjects.platform("fleet", "link-changed"), event)
