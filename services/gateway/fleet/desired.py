"""The set of objects that a cluster should hold: written in the transaction of the change, fetched by the agent.

Each change takes the lock of the cluster's row in fleet.desired, so generations follow the order of commits. An object
goes only by tombstone, and a tombstone stays until the cluster has confirmed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from libs.log import trace
from libs.pg import Record, Tx
from services.gateway.tenancy.domain.rows import Row

CHANNEL = "desired"  # NOTIFY channel; payload: `{cluster uid} {generation} {traceparent}`
ORDER = ("Tenant", "TenantResourceQuota", "TenantNetworkPolicy", "Environment")


@dataclass(frozen=True, slots=True)
class Ref:
    """An object in a cluster: kind, name, uid of the row it stands for, and whose it is."""

    kind: str
    name: str
    uid: UUID
    tenant: str


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a set without reading it."""

    generation: int
    checksum: str
    confirmed_generation: int


def canonical(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest: JSON with sorted keys, so that equal manifests are equal bytes."""
    return orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)


def checksum(objects: Iterable[Row]) -> str:
    """SHA-256, hex, over the objects in order: kind, name, uid, generation and manifest, NUL between them; no trace context."""
    digest = hashlib.sha256()
    for obj in objects:
        head = f"{obj['kind']}\0{obj['name']}\0{obj['uid']}\0{obj['generation']}\0"
        digest.update(head.encode() + bytes(obj["manifest"]) + b"\0")
    return digest.hexdigest()


async def put(tx: Tx, cluster_uid: UUID, ref: Ref, manifest: Mapping[str, Any]) -> bool:
    """Makes an object what it should be; whether that changes the set. The same manifest again changes nothing."""
    body = canonical(manifest)
    await hold(tx, cluster_uid)
    known = await tx.row(
        "SELECT uid, manifest FROM fleet.desired_objects WHERE cluster_uid = $1 AND kind = $2 AND name = $3",
        cluster_uid, ref.kind, ref.name,
    )  # fmt: skip
    if known and known["uid"] == ref.uid and known["manifest"] == body:
        return False
    generation = await _next(tx, cluster_uid)
    if known and known["uid"] != ref.uid:
        await _bury(tx, cluster_uid, Ref(ref.kind, ref.name, known["uid"], ref.tenant), generation)
    await tx.execute(
        "DELETE FROM fleet.tombstones WHERE cluster_uid = $1 AND kind = $2 AND name = $3 AND uid = $4",
        cluster_uid, ref.kind, ref.name, ref.uid,
    )  # fmt: skip
    await tx.execute(
        "INSERT INTO fleet.desired_objects (cluster_uid, kind, name, uid, tenant, generation, manifest, traceparent)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        " ON CONFLICT (cluster_uid, kind, name) DO UPDATE SET uid = excluded.uid, tenant = excluded.tenant,"
        " generation = excluded.generation, manifest = excluded.manifest, traceparent = excluded.traceparent",
        cluster_uid, ref.kind, ref.name, ref.uid, ref.tenant, generation, body, trace.traceparent(),
    )  # fmt: skip
    return True


async def remove(tx: Tx, cluster_uid: UUID, ref: Ref) -> bool:
    """Puts a tombstone in the place of an object; whether it was there."""
    await hold(tx, cluster_uid)
    gone = await tx.execute(
        "DELETE FROM fleet.desired_objects WHERE cluster_uid = $1 AND kind = $2 AND name = $3 AND uid = $4",
        cluster_uid, ref.kind, ref.name, ref.uid,
    )  # fmt: skip
    if gone:
        await _bury(tx, cluster_uid, ref, await _next(tx, cluster_uid))
    return bool(gone)


async def confirm_removals(tx: Tx, cluster_uid: UUID, confirmed: Iterable[Row]) -> None:
    """Takes away the tombstones whose objects the cluster says are gone; the set does not change by that."""
    for tombstone in confirmed:
        await tx.execute(
            "DELETE FROM fleet.tombstones WHERE cluster_uid = $1 AND kind = $2 AND name = $3 AND uid = $4",
            cluster_uid, tombstone["kind"], tombstone["name"], tombstone["uid"],
        )  # fmt: skip


async def head(tx: Tx, cluster_uid: UUID, *, lock: bool = False) -> Head | None:
    """The set's generation and checksum (empty: not computed yet); None for an unknown cluster.

    With `lock` no one changes the set until the transaction ends, so that what is read next belongs to that generation.
    """
    row = await tx.row(
        "SELECT generation, checksum, confirmed_generation FROM fleet.desired WHERE cluster_uid = $1"
        + (" FOR NO KEY UPDATE" if lock else ""),
        cluster_uid,
    )
    return Head(row["generation"], row["checksum"], row["confirmed_generation"]) if row else None


async def seal(tx: Tx, cluster_uid: UUID, checksum_: str) -> None:
    """Keeps the checksum of the current generation; each change of the set forgets it."""
    await tx.execute("UPDATE fleet.desired SET checksum = $2 WHERE cluster_uid = $1", cluster_uid, checksum_)


async def objects(tx: Tx, cluster_uid: UUID) -> list[Record]:
    """The objects, what others need first."""
    return await tx.rows(
        "SELECT kind, name, uid, generation, manifest, traceparent FROM fleet.desired_objects WHERE cluster_uid = $1"
        ' ORDER BY array_position($2::text[], kind), name COLLATE "C"',
        cluster_uid, list(ORDER),
    )  # fmt: skip


async def tombstones(tx: Tx, cluster_uid: UUID) -> list[Record]:
    """The removals not yet confirmed, oldest first."""
    return await tx.rows(
        "SELECT kind, name, uid, tenant, generation, traceparent FROM fleet.tombstones"
        " WHERE cluster_uid = $1 ORDER BY generation, kind, name",
        cluster_uid,
    )


async def unconfirmed(tx: Tx, tenant: str) -> list[Record]:
    """The removals of a tenant's objects that clusters have not confirmed: cluster, its link, kind and name, the last word on it."""
    return await tx.rows(
        "SELECT c.name AS cluster, c.online, c.confirmation_needed, t.kind, t.name, coalesce(s.message, '') AS message"
        " FROM fleet.tombstones t JOIN fleet.clusters c ON c.uid = t.cluster_uid"
        " LEFT JOIN fleet.statuses s ON s.cluster_uid = t.cluster_uid AND s.kind = t.kind AND s.name = t.name AND s.uid = t.uid"
        " WHERE t.tenant = $1 ORDER BY c.name, t.generation, t.kind, t.name",
        tenant,
    )


async def holds(tx: Tx, tenant: str) -> bool:
    """Whether any cluster holds, or may still hold, something of a tenant."""
    return bool(
        await tx.value(
            "SELECT EXISTS (SELECT 1 FROM fleet.desired_objects WHERE tenant = $1)"
            " OR EXISTS (SELECT 1 FROM fleet.tombstones WHERE tenant = $1)",
            tenant,
        )
    )


async def confirm(tx: Tx, cluster_uid: UUID, generation: int) -> None:
    """Lets the removals up to a generation go on."""
    await tx.execute(
        "UPDATE fleet.desired SET confirmed_generation = greatest(confirmed_generation, $2) WHERE cluster_uid = $1", cluster_uid, generation
    )
    await _hint(tx, cluster_uid, generation)


async def wake(tx: Tx, cluster_uid: UUID) -> None:
    """Has the agent look again, although the set is the same."""
    await _hint(tx, cluster_uid, int(await tx.value("SELECT generation FROM fleet.desired WHERE cluster_uid = $1", cluster_uid)))


async def hold(tx: Tx, cluster_uid: UUID) -> None:
    """Keeps others from changing a set until the transaction ends; take it before reading what an object is derived from."""
    await tx.value("SELECT generation FROM fleet.desired WHERE cluster_uid = $1 FOR NO KEY UPDATE", cluster_uid)


async def _next(tx: Tx, cluster_uid: UUID) -> int:
    generation = await tx.value(
        "UPDATE fleet.desired SET generation = generation + 1, checksum = '' WHERE cluster_uid = $1 RETURNING generation", cluster_uid
    )
    if generation is None:
        raise LookupError(f"no desired state for cluster {cluster_uid}")
    await _hint(tx, cluster_uid, generation)
    return int(generation)


async def _hint(tx: Tx, cluster_uid: UUID, generation: int) -> None:
    await tx.execute("SELECT pg_notify($1, $2)", CHANNEL, f"{cluster_uid} {generation} {trace.traceparent()}".rstrip())


async def _bury(tx: Tx, cluster_uid: UUID, ref: Ref, generation: int) -> None:
    await tx.execute(
        "INSERT INTO fleet.tombstones (cluster_uid, kind, name, uid, tenant, generation, traceparent) VALUES ($1, $2, $3, $4, $5, $6, $7)"
        " ON CONFLICT (cluster_uid, kind, name, uid) DO UPDATE SET generation = excluded.generation, traceparent = excluded.traceparent",
        cluster_uid, ref.kind, ref.name, ref.uid, ref.tenant, generation, trace.traceparent(),
    )  # fmt: skip
