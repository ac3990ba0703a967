"""Taking a cluster away: at once, when it has confirmed its last removal, or by force with all that it still holds."""

from __future__ import annotations

from uuid import UUID

from libs.faults import Unavailable
from libs.pg import Record, Tx
from services.gateway.fleet import clusters_store, desired, health_store
from services.gateway.tenancy import environments_store, events, messages, quotas_store, settle, tenants_store
from services.gateway.tenancy.domain import names

CHANNEL = "clusters_removed"  # NOTIFY channel; payload: uid


class ClusterBusy(Unavailable):
    """Another tenant came onto the cluster meanwhile."""

    reason = "CLUSTER_BUSY"


async def lock(tx: Tx, name: str) -> Record:
    """Holds a cluster and the tenants on it, tenants first as all others do, until the transaction ends; NotFound."""
    uid = (await clusters_store.get(tx, name))["uid"]
    tenants = await _tenants(tx, uid)
    for tenant in tenants:
        await tx.execute("SELECT 1 FROM tenancy.tenants WHERE name = $1 FOR UPDATE", tenant)
    await clusters_store.hold(tx, name, exclusively=True)
    if await _tenants(tx, uid) != tenants:
        raise ClusterBusy(f"clusters/{name} is being changed; try again")
    return await clusters_store.get(tx, name)


async def force(tx: Tx, row: Record) -> None:
    """Lets go of a cluster with all that it holds; what bears these names may still be in it, so they are burnt."""
    uid = row["uid"]
    rows = await tx.rows("SELECT uid, tenant, project, name, namespace FROM tenancy.environments WHERE cluster_uid = $1 ORDER BY uid", uid)
    for env in rows:
        name = names.environment(env["tenant"], env["project"], env["name"])
        await tenants_store.burn(tx, name)
        await tenants_store.burn(tx, environments_store.burnt_namespace(uid, env["namespace"]))
        await environments_store.delete(tx, env["uid"])
        gone = messages.environment_name(env["tenant"], env["project"], env["name"], str(env["uid"]))
        await events.publish(tx, "environment-deleted", gone)
    for tenant in await clusters_store.tenants_on(tx, uid):
        await quotas_store.delete(tx, tenant, uid)
    await now(tx, row, forced=True)


async def now(tx: Tx, row: Record, *, forced: bool) -> None:
    """Takes a cluster away with its set, tokens and statuses, and revokes its certificates."""
    uid = row["uid"]
    waiting = await clusters_store.waiting_tenants(tx, uid)
    await tx.execute("UPDATE fleet.certificates SET revoked = now() WHERE cluster_uid = $1 AND revoked IS NULL", uid)
    await tx.execute(
        "INSERT INTO fleet.removed_clusters (uid, name, forced) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", uid, row["name"], forced
    )
    await tx.execute("DELETE FROM fleet.clusters WHERE uid = $1", uid)
    for tenant in waiting:
        if await settle.tenant(tx, tenant):  # it went unconfirmed: the cluster may hold it still
            await tenants_store.burn(tx, names.tenant(tenant))
    await health_store.removed(tx, row["name"], uid, row["state"])
    await tx.execute("SELECT pg_notify($1, $2)", CHANNEL, str(uid))


async def settled(tx: Tx, uid: UUID) -> bool:
    """Takes a leaving cluster away when it has confirmed everything; whether it is gone. Hold the tenants concerned first."""
    row = await clusters_store.by_uid(tx, uid)
    if row is None or not row["leaving"] or await desired.tombstones(tx, uid):
        return False
    await clusters_store.hold(tx, row["name"], exclusively=True)
    await now(tx, row, forced=False)
    return True


async def _tenants(tx: Tx, uid: UUID) -> list[str]:
    return sorted({*await clusters_store.tenants_on(tx, uid), *await clusters_store.waiting_tenants(tx, uid)})
