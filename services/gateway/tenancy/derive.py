"""From rows to what clusters should hold, in the transaction that changed the rows."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from libs.pg import Tx
from services.gateway.fleet import desired
from services.gateway.fleet.desired import Ref
from services.gateway.tenancy import environments_store, quotas_store, tenants_store
from services.gateway.tenancy.domain import manifests
from services.gateway.tenancy.domain.rows import Row


async def presence(tx: Tx, tenant: Row, cluster_uid: UUID, hard: Mapping[str, str]) -> None:
    """A tenant on a cluster where it has a quota: its Tenant, TenantResourceQuota and TenantNetworkPolicy."""
    await desired.put(tx, cluster_uid, _ref(manifests.TENANT, tenant), manifests.tenant(tenant["name"]))
    await desired.put(tx, cluster_uid, _ref(manifests.QUOTA, tenant), manifests.resource_quota(tenant["name"], hard))
    await network(tx, tenant, cluster_uid)


async def network(tx: Tx, tenant: Row, cluster_uid: UUID) -> None:
    """Who is shut off from whom, after an isolation switch or an environment changed."""
    await desired.hold(tx, cluster_uid)  # two switches at once would each write without seeing the other
    manifest = manifests.network_policy(
        tenant["name"],
        isolated=tenant["isolated"],
        projects=await environments_store.isolated_projects(tx, tenant["name"]),
        environments=await environments_store.isolated(tx, tenant["name"], cluster_uid),
    )
    await desired.put(tx, cluster_uid, _ref(manifests.NETWORK, tenant), manifest)


async def networks(tx: Tx, tenant: str) -> None:
    """The same on every cluster of the tenant."""
    row = await tenants_store.get(tx, tenant)
    for cluster_uid in await tenants_store.clusters(tx, tenant):
        await network(tx, row, cluster_uid)


async def environment(tx: Tx, env: Row, *, network_too: bool) -> None:
    """An environment, and the network policy when its isolation counts there."""
    await desired.put(tx, env["cluster_uid"], environment_ref(env), manifests.environment(env))
    if network_too:
        await network(tx, await tenants_store.get(tx, env["tenant"]), env["cluster_uid"])


async def withdraw(tx: Tx, tenant: Row, cluster_uid: UUID) -> None:
    """Takes a tenant off a cluster."""
    for kind in (manifests.NETWORK, manifests.QUOTA, manifests.TENANT):
        await desired.remove(tx, cluster_uid, _ref(kind, tenant))
    await quotas_store.delete(tx, tenant["name"], cluster_uid)


def environment_ref(env: Row) -> Ref:
    """How the Environment object is named: like its namespace."""
    return Ref(manifests.ENVIRONMENT, env["namespace"], env["uid"], env["tenant"])


def _ref(kind: str, tenant: Row) -> Ref:
    return Ref(kind, tenant["name"], tenant["uid"], tenant["name"])
