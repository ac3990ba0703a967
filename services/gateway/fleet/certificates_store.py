"""SQL of agents' certificates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from libs.pg import Database, Record, Tx
from services.gateway.fleet import domain

_MOST = 100  # of one cluster


async def lock(tx: Tx, cluster_uid: str) -> None:
    """Waits for whatever gives a cluster's certificates out or revokes them, and holds others off until the transaction ends."""
    await tx.execute("SELECT FROM fleet.clusters WHERE uid::text = $1 FOR NO KEY UPDATE", cluster_uid)


async def insert(tx: Tx, serial: str, cluster_uid: UUID, issued: datetime, expires: datetime, *, trust: str) -> None:
    """Keeps that a certificate was issued, together with the CA bundle of that hash, and forgets its cluster's that are of no use.

    An agent holds one certificate, so of many the newest are enough, however often one renews; an unknown one is refused.
    """
    await tx.execute(
        "DELETE FROM fleet.certificates WHERE cluster_uid = $1 AND (expires < $2::timestamptz - $3::interval OR serial IN"
        " (SELECT serial FROM fleet.certificates WHERE cluster_uid = $1 ORDER BY issued DESC OFFSET $4))",
        cluster_uid, issued, domain.FORGOTTEN, _MOST,
    )  # fmt: skip
    await tx.execute(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires, trust) VALUES ($1, $2, $3, $4, $5)",
        serial, cluster_uid, issued, expires, trust,
    )  # fmt: skip


async def behind(tx: Tx, trust: str) -> list[str]:
    """Names of the joined clusters whose newest certificate that an agent was seen with came with another CA bundle, or that have none.

    What was only issued does not count: its answer may have been lost on the way.
    """
    rows = await tx.rows(
        "SELECT DISTINCT ON (c.name) c.name, t.trust, t.used FROM fleet.certificates t JOIN fleet.clusters c ON c.uid = t.cluster_uid"
        " WHERE t.revoked IS NULL ORDER BY c.name, t.used IS NULL, t.issued DESC, t.expires DESC"
    )
    return [row["name"] for row in rows if row["trust"] != trust or row["used"] is None]


async def seen(tx: Tx, serials: Collection[str], now: datetime) -> None:
    """Keeps that agents hold these certificates (serial numbers, hex) in use."""
    await tx.execute("UPDATE fleet.certificates SET used = $2 WHERE serial = ANY($1::text[]) AND used IS NULL", list(serials), now)


async def get(tx: Tx, serial: str) -> Record | None:
    """A certificate by serial number (hex), with its cluster's name (None when the cluster was removed)."""
    return await tx.row(
        "SELECT t.serial, t.cluster_uid, t.expires, t.revoked, c.name AS cluster FROM fleet.certificates t"
        " LEFT JOIN fleet.clusters c ON c.uid = t.cluster_uid WHERE t.serial = $1",
        serial,
    )


async def adopt(tx: Tx, serial: str, cluster_uid: str, issued: datetime, expires: datetime) -> None:
    """Keeps a certificate that this hub issued after the backup that its database was restored from.

    Not one from before all of the cluster's were revoked: it is too, although its row was not there to be marked.
    """
    await tx.execute(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) SELECT $1, c.uid, $3, $4 FROM fleet.clusters c, fleet.hub h"
        " WHERE c.uid::text = $2 AND h.restored >= $3"
        " AND (c.revoked_until IS NULL OR c.revoked_until < $3) ON CONFLICT DO NOTHING",
        serial, cluster_uid, issued, expires,
    )  # fmt: skip


async def revoke(tx: Tx, cluster_uid: UUID, now: datetime) -> int:
    """Revokes a cluster's certificates, and tells every gateway to look who holds one; how many."""
    await tx.execute("SELECT pg_notify('clusters_removed', '')")
    await tx.execute("UPDATE fleet.clusters SET revoked_until = $2 WHERE uid = $1", cluster_uid, now)
    return await tx.execute("UPDATE fleet.certificates SET revoked = $2 WHERE cluster_uid = $1 AND revoked IS NULL", cluster_uid, now)


async def refused(tx: Tx, held: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of cluster uids with a certificate (serial number, hex) those whose is not known, revoked, or of a cluster that is gone."""
    rows = await tx.rows(
        "SELECT h.uid, h.serial FROM unnest($1::text[], $2::text[]) AS h (uid, serial) WHERE NOT EXISTS (SELECT 1 FROM fleet.certificates t"
        " JOIN fleet.clusters c ON c.uid = t.cluster_uid"
        " WHERE t.cluster_uid::text = h.uid AND t.serial = h.serial AND t.revoked IS NULL)",
        [uid for uid, _ in held], [serial for _, serial in held],
    )  # fmt: skip
    return [(row["uid"], row["serial"]) for row in rows]


async def superseded(tx: Tx, held: Mapping[str, int]) -> dict[str, int]:
    """The greatest number of a tunnel of each cluster whose held one (by uid) is not the newest."""
    rows = await tx.rows(
        "SELECT h.uid, c.tunnel FROM unnest($1::text[], $2::bigint[]) AS h (uid, number)"
        " JOIN fleet.clusters c ON c.uid::text = h.uid WHERE c.tunnel > h.number",
        list(held.keys()), list(held.values()),
    )  # fmt: skip
    return {row["uid"]: row["tunnel"] for row in rows}


class Certificates:
    """Answers whether a certificate still opens a link, for the tunnel's and NATS's doors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def refused(self, held: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of some (cluster uid, serial number in hex) that open no link."""
        async with self._database.transaction(readonly=True) as tx:
            return await refused(tx, held)

    async def allowed(self, uid: str, serial: str = "") -> bool:
        """Whether a cluster is ours and the certificate (serial number, hex; empty: any of its) is not revoked."""
        try:
            cluster_uid = UUID(uid)
        except ValueError:
            return False
        async with self._database.transaction(readonly=True) as tx:
            return bool(
                await tx.value(
                    "SELECT EXISTS (SELECT 1 FROM fleet.certificates t JOIN fleet.clusters c ON c.uid = t.cluster_uid"
                    " WHERE t.cluster_uid = $1 AND ($2 = '' OR t.serial = $2) AND t.revoked IS NULL)",
                    cluster_uid, serial.lower().removeprefix("0x"),
                )
            )  # fmt: skip
