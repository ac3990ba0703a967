"""SQL of environments: what was asked for, joined with what the cluster last reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from services.gateway.tenancy import missing
from services.gateway.tenancy.domain import names

_COLUMNS = (
    "e.uid, e.tenant, e.project, e.name, e.cluster_uid, e.namespace, e.adopt_namespace, e.display_name, e.description, e.quota,"
    " e.limit_range, e.delete_policy, e.pod_security, e.isolated, e.state, e.version, e.created, e.updated"
)
# The order of the cases matters: what was asked for last comes before what was reported about something older.
_SHOWN = (
    "CASE WHEN e.state = 'DELETING' THEN 'DELETING'"
    " WHEN s.generation IS NULL OR o.generation IS NULL OR s.generation < o.generation THEN 'PENDING'"
    " WHEN NOT c.online THEN 'UNKNOWN'"
    " WHEN s.state = 'READY' THEN 'READY'"
    " WHEN s.state IN ('DEGRADED', 'FAILED') THEN 'DEGRADED'"
    " ELSE 'PENDING' END"
)
_FROM = (
    " FROM tenancy.environments e JOIN fleet.clusters c ON c.uid = e.cluster_uid"
    " LEFT JOIN fleet.desired_objects o ON o.cluster_uid = e.cluster_uid AND o.kind = 'Environment' AND o.name = e.namespace"
    " LEFT JOIN fleet.statuses s"
    " ON s.cluster_uid = e.cluster_uid AND s.kind = 'Environment' AND s.name = e.namespace AND s.uid = e.uid"
)
NAME = "'tenants/' || e.tenant || '/projects/' || e.project || '/environments/' || e.name"
_KEY = (Part("e.tenant", "tenant"), Part("e.project", "project"), Part("e.name", "name"))
SOURCE = Source(
    select=f"SELECT {_COLUMNS}, c.name AS cluster, c.online, c.paused, c.confirmation_needed, s.state AS reported_state, s.reason,"
    f" s.message, s.conditions, s.used, s.hard, s.reported, {_SHOWN} AS shown_state{_FROM}",
    tally=f"SELECT count(*){_FROM}",
    filters={
        "name": NAME,
        "display_name": "e.display_name",
        "cluster": "'clusters/' || c.name",
        "namespace": "e.namespace",
        "state": Column(_SHOWN, values=("PENDING", "READY", "DEGRADED", "UNKNOWN", "DELETING")),
        "isolated": Column("e.isolated", "bool"),
        "create_time": Column("e.created", "time"),
        "update_time": Column("e.updated", "time"),
        "report_time": Column("s.reported", "time", nullable=True),
    },
    orders={
        "name": _KEY,
        "display_name": (Part("e.display_name", "display_name"),),
        "cluster": (Part("c.name", "cluster"),),
        "namespace": (Part("e.namespace", "namespace"),),
        "state": (Part(_SHOWN, "shown_state"),),
        "create_time": (Part("e.created", "created", "time"),),
        "update_time": (Part("e.updated", "updated", "time"),),
        "report_time": (Part("s.reported", "reported", "time", nullable=True),),
    },
    key=_KEY,
    default="name",
)


async def get(tx: Tx, tenant: str, project: str, environment: str, *, lock: bool = False) -> Record:
    """An environment with its reported state; NotFound. With `lock` no one else changes it until the transaction ends."""
    row = await tx.row(
        f"{SOURCE.select} WHERE e.tenant = $1 AND e.project = $2 AND e.name = $3" + (" FOR UPDATE OF e" if lock else ""),
        tenant, project, environment,
    )  # fmt: skip
    if row is None:
        raise missing.not_found(names.environment(tenant, project, environment))
    return row


async def by_uid(tx: Tx, uid: UUID) -> Record | None:
    """An environment with its reported state, by uid."""
    return await tx.row(f"{SOURCE.select} WHERE e.uid = $1", uid)


async def insert(tx: Tx, env: Mapping[str, Any]) -> bool:
    """Adds an environment; False when its name or its namespace is taken."""
    return bool(
        await tx.execute(
            "INSERT INTO tenancy.environments (uid, tenant, project, name, cluster_uid, namespace, adopt_namespace, display_name,"
            " description, quota, limit_range, delete_policy, pod_security, isolated)"
            " SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14"
            " WHERE NOT EXISTS (SELECT 1 FROM tenancy.burnt_names WHERE name IN ($15, $16)) ON CONFLICT DO NOTHING",
            env["uid"], env["tenant"], env["project"], env["name"], env["cluster_uid"], env["namespace"], env["adopt_namespace"],
            env["display_name"], env["description"], env["quota"], env["limit_range"], env["delete_policy"], env["pod_security"],
            env["isolated"], names.environment(env["tenant"], env["project"], env["name"]),
            burnt_namespace(env["cluster_uid"], env["namespace"]),
        )
    )  # fmt: skip


def burnt_namespace(cluster_uid: UUID, namespace: str) -> str:
    """How a namespace that a forced removal left behind is named among the burnt names."""
    return f"namespaces/{cluster_uid}/{namespace}"


async def named(tx: Tx, tenant: str, project: str, environment: str) -> bool:
    """Whether the name is taken or burnt."""
    return bool(
        await tx.value(
            "SELECT EXISTS (SELECT 1 FROM tenancy.environments WHERE tenant = $1 AND project = $2 AND name = $3)"
            " OR EXISTS (SELECT 1 FROM tenancy.burnt_names WHERE name = $4)",
            tenant, project, environment, names.environment(tenant, project, environment),
        )
    )  # fmt: skip


async def update(tx: Tx, env: Mapping[str, Any]) -> None:
    """Changes what an Update may."""
    await tx.execute(
        "UPDATE tenancy.environments SET display_name = $2, description = $3, quota = $4, limit_range = $5, delete_policy = $6,"
        " pod_security = $7, isolated = $8, adopt_namespace = $9, version = version + 1, updated = now() WHERE uid = $1",
        env["uid"], env["display_name"], env["description"], env["quota"], env["limit_range"], env["delete_policy"],
        env["pod_security"], env["isolated"], env["adopt_namespace"],
    )  # fmt: skip


async def set_deleting(tx: Tx, uid: UUID) -> None:
    """Starts its deletion."""
    await tx.execute("UPDATE tenancy.environments SET state = 'DELETING', version = version + 1, updated = now() WHERE uid = $1", uid)


async def delete(tx: Tx, uid: UUID) -> Record | None:
    """Takes an environment away with its members; its row as it was."""
    row = await tx.row("DELETE FROM tenancy.environments WHERE uid = $1 RETURNING tenant, project, name, cluster_uid, namespace", uid)
    if row:
        await tx.execute(
            "DELETE FROM tenancy.members WHERE tenant = $1 AND project = $2 AND environment = $3",
            row["tenant"],
            row["project"],
            row["name"],
        )
    return row


async def quotas(tx: Tx, tenant: str, cluster_uid: UUID, *, without: UUID | None = None) -> dict[str, dict[str, str]]:
    """Hard quotas of a tenant's environments on a cluster by name, those being deleted included; `without` leaves one out."""
    rows = await tx.rows(
        "SELECT project, name, quota FROM tenancy.environments WHERE tenant = $1 AND cluster_uid = $2 AND uid IS DISTINCT FROM $3",
        tenant, cluster_uid, without,
    )  # fmt: skip
    return {names.environment(tenant, row["project"], row["name"]): row["quota"] for row in rows}


async def isolated(tx: Tx, tenant: str, cluster_uid: UUID) -> list[tuple[str, str]]:
    """(project, environment) of a tenant's isolated environments on a cluster."""
    rows = await tx.rows(
        "SELECT project, name FROM tenancy.environments WHERE tenant = $1 AND cluster_uid = $2 AND isolated", tenant, cluster_uid
    )
    return [(row["project"], row["name"]) for row in rows]


async def isolated_projects(tx: Tx, tenant: str) -> list[str]:
    """Ids of a tenant's isolated projects."""
    rows = await tx.rows("SELECT name FROM tenancy.projects WHERE tenant = $1 AND isolated", tenant)
    return [row["name"] for row in rows]
