"""SQL of clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from libs.faults import NotFound
from libs.pg import Record, Tx, filters
from services.gateway.tenancy.listing import Source

_STATE = "CASE WHEN c.online THEN 'ONLINE' WHEN c.joined THEN 'OFFLINE' ELSE 'WAITING' END"
_FROM = " FROM fleet.clusters c JOIN fleet.desired d ON d.cluster_uid = c.uid"
_VIEW = (
    "SELECT c.uid, c.name, c.display_name, c.online, c.joined, c.agent_version, c.seen, c.inventory, c.applied_generation,"
    f" c.confirmation_needed, c.version, c.created, c.updated, d.generation AS desired_generation, {_STATE} AS state{_FROM}"
)
SOURCE = Source(
    select=_VIEW,
    tally=f"SELECT count(*){_FROM}",
    orders={"name": (("c.name", "name"),), "create_time": (("c.created", "created"), ("c.uid", "uid"))},
)
FILTERS: dict[str, str | filters.Column] = {
    "name": "'clusters/' || c.name",
    "display_name": "c.display_name",
    "state": filters.Column(_STATE, values=("WAITING", "ONLINE", "OFFLINE")),
}


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
    """Locks a cluster against removal (or, exclusively, for it) until the transaction ends; its uid; NotFound."""
    lock = "FOR UPDATE" if exclusively else "FOR KEY SHARE"
    uid = await tx.value(f"SELECT uid FROM fleet.clusters WHERE name = $1 {lock}", name)
    if uid is None:
        raise missing(name)
    return UUID(str(uid))


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


async def delete(tx: Tx, uid: UUID) -> None:
    """Takes a cluster away with its set, tokens and statuses, and revokes its certificates."""
    await tx.execute("UPDATE fleet.certificates SET revoked = now() WHERE cluster_uid = $1 AND revoked IS NULL", uid)
    await tx.execute("DELETE FROM fleet.clusters WHERE uid = $1", uid)


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
