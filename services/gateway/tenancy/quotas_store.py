"""SQL of tenants' quotas."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from services.gateway.tenancy import missing

SOURCE = Source(
    select="SELECT q.tenant, q.cluster_uid, q.hard, q.version, q.updated, c.name AS cluster, s.used FROM tenancy.quotas q"
    " JOIN fleet.clusters c ON c.uid = q.cluster_uid"
    " LEFT JOIN fleet.statuses s ON s.cluster_uid = q.cluster_uid AND s.kind = 'TenantResourceQuota' AND s.name = q.tenant",
    filters={"cluster": "'clusters/' || c.name", "update_time": Column("q.updated", "time")},
    orders={"cluster": (Part("c.name", "cluster"),), "update_time": (Part("q.updated", "updated", "time"),)},
    key=(Part("c.name", "cluster"),),
    default="cluster",
)


async def get(tx: Tx, tenant: str, cluster: str) -> Record:
    """A tenant's quota on a cluster; NotFound."""
    row = await tx.row(f"{SOURCE.select} WHERE q.tenant = $1 AND c.name = $2", tenant, cluster)
    if row is None:
        raise missing.not_found(f"tenants/{tenant}/quotas/{cluster}", "TenantQuota")
    return row


async def lock(tx: Tx, tenant: str, cluster_uid: UUID) -> Record | None:
    """Holds a quota until the transaction ends, so that sums over its environments are true; None when there is none."""
    return await tx.row("SELECT hard, version FROM tenancy.quotas WHERE tenant = $1 AND cluster_uid = $2 FOR UPDATE", tenant, cluster_uid)


async def insert(tx: Tx, tenant: str, cluster_uid: UUID, hard: Mapping[str, str]) -> bool:
    """Makes a quota; False when there is one."""
    return bool(
        await tx.execute(
            "INSERT INTO tenancy.quotas (tenant, cluster_uid, hard) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            tenant, cluster_uid, dict(hard),
        )
    )  # fmt: skip


async def update(tx: Tx, tenant: str, cluster_uid: UUID, hard: Mapping[str, str]) -> None:
    """Changes the limits."""
    await tx.execute(
        "UPDATE tenancy.quotas SET hard = $3, version = version + 1, updated = now() WHERE tenant = $1 AND cluster_uid = $2",
        tenant, cluster_uid, dict(hard),
    )  # fmt: skip


async def delete(tx: Tx, tenant: str, cluster_uid: UUID) -> None:
    """Takes a quota away."""
    await tx.execute("DELETE FROM tenancy.quotas WHERE tenant = $1 AND cluster_uid = $2", tenant, cluster_uid)
