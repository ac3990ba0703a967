"""Interest: which kinds beyond the base set someone watches on a cluster, as msgbus replicas report it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from libs.pg import Database, Tx

KEPT_SECONDS = 60.0  # of a report; replicas repeat it well within
MOST = 64  # kinds that one agent is asked for


async def keep(tx: Tx, replica: str, wanted: Mapping[UUID, Sequence[str]]) -> None:
    """Takes one replica's whole interest in place of its last."""
    await tx.execute("DELETE FROM fleet.interest WHERE replica = $1 OR expires < now()", replica)
    rows = [(replica, uid, list(resources), KEPT_SECONDS) for uid, resources in wanted.items() if resources]
    if rows:
        await tx.many(_KEEP, rows)


class Interests:
    """What agents are told to observe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def wanted(self, uid: str) -> list[str]:
        """Kinds wanted on a cluster now: every replica's most wanted first, in turn, so that none is crowded out by another's."""
        async with self._database.transaction(readonly=True) as tx:
            rows = await tx.rows(_WANTED, UUID(uid), MOST)
        return [row["resource"] for row in rows]


_KEEP = """
INSERT INTO fleet.interest (replica, cluster_uid, resources, expires) VALUES ($1, $2, $3, now() + make_interval(secs => $4))
ON CONFLICT (replica, cluster_uid) DO UPDATE SET resources = excluded.resources, expires = excluded.expires
"""
_WANTED = """
SELECT r.resource FROM fleet.interest i, unnest(i.resources) WITH ORDINALITY AS r (resource, place)
 WHERE i.cluster_uid = $1 AND i.expires > now() GROUP BY r.resource ORDER BY min(r.place), r.resource LIMIT $2
"""
