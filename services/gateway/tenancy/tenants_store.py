"""SQL of tenants."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from services.gateway.tenancy import missing
from services.gateway.tenancy.domain import names

_COLUMNS = "t.uid, t.name, t.display_name, t.description, t.state, t.isolated, t.version, t.created, t.updated"
NAME = "'tenants/' || t.name"
SOURCE = Source(
    select=f"SELECT {_COLUMNS} FROM tenancy.tenants t",
    tally="SELECT count(*) FROM tenancy.tenants t",
    filters={
        "name": NAME,
        "display_name": "t.display_name",
        "state": Column("t.state", values=("ACTIVE", "SUSPENDED", "DELETING")),
        "isolated": Column("t.isolated", "bool"),
        "create_time": Column("t.created", "time"),
        "update_time": Column("t.updated", "time"),
    },
    orders={
        "name": (Part("t.name", "name"),),
        "display_name": (Part("t.display_name", "display_name"),),
        "state": (Part("t.state", "state"),),
        "create_time": (Part("t.created", "created", "time"),),
        "update_time": (Part("t.updated", "updated", "time"),),
    },
    key=(Part("t.name", "name"),),
    default="name",
)


async def get(tx: Tx, tenant: str, *, lock: str = "") -> Record:
    """A tenant; NotFound.

    Args:
        tx: the transaction.
        tenant: id.
        lock: `FOR SHARE` keeps it from being deleted, `FOR UPDATE` from anything; until the transaction ends.
    """
    row = await tx.row(f"{SOURCE.select} WHERE t.name = $1 {lock}", tenant)
    if row is None:
        raise missing.not_found(names.tenant(tenant))
    return row


async def insert(tx: Tx, uid: UUID, tenant: str, fields: dict[str, Any]) -> bool:
    """Adds a tenant; whether the name was free."""
    return bool(
        await tx.execute(
            "INSERT INTO tenancy.tenants (uid, name, display_name, description, isolated) SELECT $1, $2, $3, $4, $5"
            " WHERE NOT EXISTS (SELECT 1 FROM tenancy.burnt_names WHERE name = $6) ON CONFLICT (name) DO NOTHING",
            uid, tenant, fields["display_name"], fields["description"], fields["isolated"], names.tenant(tenant),
        )
    )  # fmt: skip


async def update(tx: Tx, tenant: str, fields: dict[str, Any]) -> None:
    """Changes what an Update may."""
    await tx.execute(
        "UPDATE tenancy.tenants SET display_name = $2, description = $3, isolated = $4,"
        " version = version + 1, updated = now() WHERE name = $1",
        tenant, fields["display_name"], fields["description"], fields["isolated"],
    )  # fmt: skip


async def set_state(tx: Tx, tenant: str, state: str) -> None:
    """Moves it to ACTIVE, SUSPENDED or DELETING."""
    await tx.execute("UPDATE tenancy.tenants SET state = $2, version = version + 1, updated = now() WHERE name = $1", tenant, state)


async def delete(tx: Tx, tenant: str) -> None:
    """Takes a tenant away with its members and quotas; its projects must be gone."""
    await tx.execute("DELETE FROM tenancy.members WHERE tenant = $1", tenant)
    await tx.execute("DELETE FROM tenancy.quotas WHERE tenant = $1", tenant)
    await tx.execute("DELETE FROM tenancy.tenants WHERE name = $1", tenant)


async def contents(tx: Tx, tenant: str) -> list[str]:
    """Names of the projects and environments in a tenant that are not themselves being deleted; at most 20."""
    rows = await tx.rows(
        "SELECT 'tenants/' || tenant || '/projects/' || project || '/environments/' || name AS name FROM tenancy.environments"
        " WHERE tenant = $1 AND state <> 'DELETING' UNION ALL"
        " SELECT 'tenants/' || tenant || '/projects/' || name FROM tenancy.projects WHERE tenant = $1 AND state <> 'DELETING' LIMIT 20",
        tenant,
    )
    return [row["name"] for row in rows]


async def clusters(tx: Tx, tenant: str) -> list[UUID]:
    """Uids of the clusters where a tenant has a quota, in the order in which their sets are locked."""
    rows = await tx.rows("SELECT cluster_uid FROM tenancy.quotas WHERE tenant = $1 ORDER BY cluster_uid", tenant)
    return [row["cluster_uid"] for row in rows]


async def burn(tx: Tx, name: str) -> None:
    """Never gives a name out again: a cluster that is gone for good may still hold what bears it."""
    await tx.execute("INSERT INTO tenancy.burnt_names (name) VALUES ($1) ON CONFLICT DO NOTHING", name)


async def is_burnt(tx: Tx, name: str) -> bool:
    """Whether a name was burnt."""
    return bool(await tx.value("SELECT EXISTS (SELECT 1 FROM tenancy.burnt_names WHERE name = $1)", name))
