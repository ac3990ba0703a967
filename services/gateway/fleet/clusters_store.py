"""SQL of clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from libs.faults import NotFound, Precondition
from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part

STATE = (
    "CASE WHEN c.leaving THEN 'DELETING' WHEN c.online AND c.reasons <> '[]' THEN 'DEGRADED' WHEN c.online THEN 'ONLINE'"
    " WHEN c.seen IS NOT NULL THEN 'OFFLINE' WHEN c.joined THEN 'JOINING' ELSE 'WAITING' END"
)
_FROM = " FROM fleet.clusters c JOIN fleet.desired d ON d.cluster_uid = c.uid"
_VIEW = (
    "SELECT c.uid, c.name, c.display_name, c.online, c.joined, c.agent_version, c.seen, c.inventory, c.applied_generation,"
    " c.confirmation_needed, c.paused, c.leaving, c.reasons, c.round_trip, c.clock_skew, c.local_policy, c.version, c.created, c.updated,"
    " (SELECT max(t.expires) FROM fleet.certificates t WHERE t.cluster_uid = c.uid AND t.revoked IS NULL) AS certificate_expires,"
    f" d.generation AS desired_generation, {STATE} AS state{_FROM}"
)
SOURCE = Source(
    select=_VIEW,
    tally=f"SELECT count(*){_FROM}",
    filters={
        "name": "'clusters/' || c.name",
        "display_name": "c.display_name",
        "state": Column(STATE, values=("WAITING", "JOINING", "ONLINE", "DEGRADED", "OFFLINE", "DELETING")),
        "agent_version": "c.agent_version",
        "paused": Column("c.paused", "bool"),
        "create_time": Column("c.created", "time"),
        "update_time": Column("c.updated", "time"),
        "seen_time": Column("c.seen", "time", nullable=True),
    },
    orders={
        "name": (Part("c.name", "name"),),
        "display_name": (Part("c.display_name", "display_name"),),
        "state": (Part(STATE, "state"),),
        "agent_version": (Part("c.agent_version", "agent_version"),),
        "create_time": (Part("c.created", "created", "time"),),
        "update_time": (Part("c.updated", "updated", "time"),),
        "seen_time": (Part("c.seen", "seen", "time", nullable=True),),
    },
    key=(Part("c.name", "name"),),
    default="name",
)


class ClusterLeaving(Precondition):
    """Nothing new may come onto a cluster that is being removed."""

    reason = "CLUSTER_LEAVING"


def missing(name: str) -> NotFound:
    """The fault for a cluster that is not there, or not for this caller's eyes."""
    return NotFound(f"clusters/{name} does not exist", {"resource_type": "kubegems.fleet.v1.Cluster", "resource_name": f"clusters/{name}"})


async def get(tx: Tx, name: str) -> Record:
    """A cluster by name; NotFound."""
    row = await tx.row(f"{_VIEW} WHERE c.name = $1", name)
    if row is None:
        raise missing(name)
    return row


async def by_uid(tx: Tx, uid: UUID) -> Record | None:
    """A cluster by uid."""
    return await tx.row(f"{_VIEW} WHERE c.uid = $1", uid)


async def hold(tx: Tx, name: str, *, exclusively: bool = False) -> UUID:
    """Locks a cluster against removal (or, exclusively, for it) until the transaction ends; its uid; NotFound, ClusterLeaving."""
    lock = "FOR UPDATE" if exclusively else "FOR KEY SHARE"
    row = await tx.row(f"SELECT uid, leaving FROM fleet.clusters WHERE name = $1 {lock}", name)
    if row is None:
        raise missing(name)
    if row["leaving"] and not exclusively:
        raise ClusterLeaving(f"clusters/{name} is being removed; choose another cluster")
    return UUID(str(row["uid"]))


async def insert(tx: Tx, uid: UUID, name: str, display_name: str) -> bool:
    """Adds a cluster with an empty set; whether the name was free."""
    added = await tx.execute(
        "INSERT INTO fleet.clusters (uid, name, display_name) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING", uid, name, display_name
    )
    if added:
        await tx.execute("INSERT INTO fleet.desired (cluster_uid) VALUES ($1)", uid)
    return bool(added)


async def rename(tx: Tx, uid: UUID, display_name: str) -> None:
    """Changes the name for people."""
    await tx.execute(
        "UPDATE fleet.clusters SET display_name = $2, version = version + 1, updated = now() WHERE uid = $1", uid, display_name
    )


async def set_paused(tx: Tx, uid: UUID, *, paused: bool) -> bool:
    """Stops or starts applying; whether that was a change."""
    return bool(
        await tx.execute(
            "UPDATE fleet.clusters SET paused = $2, version = version + 1, updated = now() WHERE uid = $1 AND paused <> $2", uid, paused
        )
    )


async def set_leaving(tx: Tx, uid: UUID) -> None:
    """It goes when it has confirmed its last removal."""
    await tx.execute("UPDATE fleet.clusters SET leaving = true, version = version + 1, updated = now() WHERE uid = $1", uid)


async def tenants_on(tx: Tx, uid: UUID) -> list[str]:
    """Tenants with a quota on a cluster."""
    rows = await tx.rows("SELECT tenant FROM tenancy.quotas WHERE cluster_uid = $1 ORDER BY tenant", uid)
    return [row["tenant"] for row in rows]


async def waiting_tenants(tx: Tx, uid: UUID) -> list[str]:
    """Tenants of which the cluster holds something, or has not confirmed that it no longer does."""
    rows = await tx.rows(
        "SELECT tenant FROM fleet.tombstones WHERE cluster_uid = $1"
        " UNION SELECT tenant FROM fleet.desired_objects WHERE cluster_uid = $1 ORDER BY tenant", uid,
    )  # fmt: skip
    return [row["tenant"] for row in rows]


async def all_links(tx: Tx) -> list[Record]:
    """Name and uid of every cluster."""
    return await tx.rows("SELECT name, uid FROM fleet.clusters ORDER BY name")


async def keep_inventory(tx: Tx, uid: UUID, inventory: Mapping[str, Any]) -> None:
    """Keeps what was counted."""
    await tx.execute("UPDATE fleet.clusters SET inventory = $2 WHERE uid = $1", uid, dict(inventory))


async def keep_policy(tx: Tx, uid: UUID, policy: Mapping[str, Any]) -> None:
    """Keeps what the cluster's owner denies."""
    await tx.execute("UPDATE fleet.clusters SET local_policy = $2 WHERE uid = $1 AND local_policy IS DISTINCT FROM $2", uid, dict(policy))
