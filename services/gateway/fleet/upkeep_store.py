"""SQL of the platform's own jobs: over all tenants and clusters, a few facts each."""

from __future__ import annotations

from libs.pg import Record, Tx

_CERTIFICATES = """
SELECT DISTINCT ON (c.name) c.name AS cluster, t.serial, t.expires FROM fleet.certificates t JOIN fleet.clusters c ON c.uid = t.cluster_uid
 WHERE t.revoked IS NULL ORDER BY c.name, t.expires DESC
"""
_ENVIRONMENTS = """
SELECT e.tenant, e.project, e.name, e.namespace, e.quota, c.name AS cluster, coalesce(s.hard, '{}') AS hard, coalesce(s.used, '{}') AS used,
       s.reported
  FROM tenancy.environments e JOIN fleet.clusters c ON c.uid = e.cluster_uid
  LEFT JOIN fleet.statuses s ON s.cluster_uid = e.cluster_uid AND s.kind = 'Environment' AND s.name = e.namespace AND s.uid = e.uid
 WHERE e.state = 'ACTIVE' ORDER BY e.tenant, e.project, e.name
"""
_QUOTAS = """
SELECT q.tenant, c.name AS cluster, q.hard, coalesce(s.used, '{}') AS used,
       coalesce((SELECT jsonb_agg(e.quota) FROM tenancy.environments e WHERE e.tenant = q.tenant AND e.cluster_uid = q.cluster_uid), '[]')
       AS environments
  FROM tenancy.quotas q JOIN fleet.clusters c ON c.uid = q.cluster_uid
  LEFT JOIN fleet.statuses s ON s.cluster_uid = q.cluster_uid AND s.kind = 'TenantResourceQuota' AND s.name = q.tenant
 ORDER BY q.tenant, c.name
"""
_TENANTS_QUOTAS = "SELECT cluster_uid, hard FROM tenancy.quotas WHERE tenant = $1 ORDER BY cluster_uid"
_TENANTS_ENVIRONMENTS = "SELECT project, name FROM tenancy.environments WHERE tenant = $1 AND state = 'ACTIVE' ORDER BY cluster_uid, uid"
_OBJECTS = """
SELECT d.cluster_uid, c.name AS cluster, d.kind, d.name, d.uid, d.generation FROM fleet.desired_objects d
  JOIN fleet.clusters c ON c.uid = d.cluster_uid WHERE d.tenant = $1 ORDER BY d.cluster_uid, d.kind, d.name
"""


async def certificates(tx: Tx) -> list[Record]:
    """The newest good certificate of each cluster."""
    return await tx.rows(_CERTIFICATES)


async def environments(tx: Tx) -> list[Record]:
    """All environments with what they may use and use."""
    return await tx.rows(_ENVIRONMENTS)


async def quotas(tx: Tx) -> list[Record]:
    """All quotas with the limits of the environments under each."""
    return await tx.rows(_QUOTAS)


async def quotas_of(tx: Tx, tenant: str) -> list[Record]:
    """A tenant's quotas, in the order in which sets are locked."""
    return await tx.rows(_TENANTS_QUOTAS, tenant)


async def environments_of(tx: Tx, tenant: str) -> list[Record]:
    """A tenant's environments, in the order in which sets are locked."""
    return await tx.rows(_TENANTS_ENVIRONMENTS, tenant)


async def objects_of(tx: Tx, tenant: str) -> list[Record]:
    """What is kept for clusters of a tenant."""
    return await tx.rows(_OBJECTS, tenant)
