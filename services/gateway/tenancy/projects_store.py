"""SQL of projects."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from services.gateway.tenancy import missing
from services.gateway.tenancy.domain import names

_COLUMNS = "p.uid, p.tenant, p.name, p.display_name, p.description, p.state, p.isolated, p.version, p.created, p.updated"
NAME = "'tenants/' || p.tenant || '/projects/' || p.name"
_KEY = (Part("p.tenant", "tenant"), Part("p.name", "name"))
SOURCE = Source(
    select=f"SELECT {_COLUMNS} FROM tenancy.projects p",
    tally="SELECT count(*) FROM tenancy.projects p",
    filters={
        "name": NAME,
        "display_name": "p.display_name",
        "state": Column("p.state", values=("ACTIVE", "DELETING")),
        "isolated": Column("p.isolated", "bool"),
        "create_time": Column("p.created", "time"),
        "update_time": Column("p.updated", "time"),
    },
    orders={
        "name": _KEY,
        "display_name": (Part("p.display_name", "display_name"),),
        "state": (Part("p.state", "state"),),
        "create_time": (Part("p.created", "created", "time"),),
        "update_time": (Part("p.updated", "updated", "time"),),
    },
    key=_KEY,
    default="name",
)


async def get(tx: Tx, tenant: str, project: str, *, lock: str = "") -> Record:
    """A project; NotFound. `lock` as in tenants_store.get."""
    row = await tx.row(f"{SOURCE.select} WHERE p.tenant = $1 AND p.name = $2 {lock}", tenant, project)
    if row is None:
        raise missing.not_found(names.project(tenant, project))
    return row


async def insert(tx: Tx, uid: UUID, tenant: str, project: str, fields: dict[str, Any]) -> bool:
    """Adds a project; whether the name was free."""
    return bool(
        await tx.execute(
            "INSERT INTO tenancy.projects (uid, tenant, name, display_name, description, isolated) SELECT $1, $2, $3, $4, $5, $6"
            " WHERE NOT EXISTS (SELECT 1 FROM tenancy.burnt_names WHERE name = $7) ON CONFLICT (tenant, name) DO NOTHING",
            uid, tenant, project, fields["display_name"], fields["description"], fields["isolated"], names.project(tenant, project),
        )
    )  # fmt: skip


async def update(tx: Tx, tenant: str, project: str, fields: dict[str, Any]) -> None:
    """Changes what an Update may."""
    await tx.execute(
        "UPDATE tenancy.projects SET display_name = $3, description = $4, isolated = $5, version = version + 1, updated = now()"
        " WHERE tenant = $1 AND name = $2",
        tenant, project, fields["display_name"], fields["description"], fields["isolated"],
    )  # fmt: skip


async def set_deleting(tx: Tx, tenant: str, project: str) -> None:
    """Starts its deletion."""
    await tx.execute(
        "UPDATE tenancy.projects SET state = 'DELETING', version = version + 1, updated = now() WHERE tenant = $1 AND name = $2",
        tenant, project,
    )  # fmt: skip


async def delete(tx: Tx, tenant: str, project: str) -> None:
    """Takes a project away with its members; its environments must be gone."""
    await tx.execute("DELETE FROM tenancy.members WHERE tenant = $1 AND project = $2", tenant, project)
    await tx.execute("DELETE FROM tenancy.projects WHERE tenant = $1 AND name = $2", tenant, project)


async def contents(tx: Tx, tenant: str, project: str) -> list[str]:
    """Names of its environments that are not being deleted; at most 20."""
    rows = await tx.rows(
        "SELECT name FROM tenancy.environments WHERE tenant = $1 AND project = $2 AND state <> 'DELETING' ORDER BY name LIMIT 20",
        tenant, project,
    )  # fmt: skip
    return [names.environment(tenant, project, row["name"]) for row in rows]


async def empty(tx: Tx, tenant: str, project: str) -> bool:
    """Whether no environment is left, not even one being deleted."""
    return not await tx.value("SELECT EXISTS (SELECT 1 FROM tenancy.environments WHERE tenant = $1 AND project = $2)", tenant, project)


async def deleting(tx: Tx, tenant: str) -> list[str]:
    """Ids of a tenant's projects that are being deleted."""
    rows = await tx.rows("SELECT name FROM tenancy.projects WHERE tenant = $1 AND state = 'DELETING' ORDER BY name FOR UPDATE", tenant)
    return [row["name"] for row in rows]


async def count(tx: Tx, tenant: str) -> int:
    """How many projects a tenant has."""
    return int(await tx.value("SELECT count(*) FROM tenancy.projects WHERE tenant = $1", tenant))
