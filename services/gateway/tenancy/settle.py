"""Letting go: what is being deleted goes when no cluster holds it any more."""

from __future__ import annotations

from typing import Any

from libs.faults import NotFound
from libs.pg import Tx
from services.gateway.fleet import desired
from services.gateway.tenancy import derive, environments_store, events, messages, projects_store, tenants_store
from services.gateway.tenancy.domain.rows import Row


async def environment_gone(tx: Tx, uid: Any) -> None:
    """The cluster has confirmed an environment's removal: its row, its members and its share of the quota go. Lock its tenant first."""
    env = await environments_store.delete(tx, uid)
    if env is None:
        return
    await events.publish(tx, "environment-deleted", messages.environment_name(env["tenant"], env["project"], env["name"], str(uid)))
    if env["cluster_uid"] in await tenants_store.clusters(tx, env["tenant"]):
        await derive.network(tx, await tenants_store.get(tx, env["tenant"]), env["cluster_uid"])


async def tenant(tx: Tx, name: str) -> bool:
    """Lets go of a tenant's empty projects that are being deleted, and of the tenant itself; whether the tenant is gone."""
    try:
        row = await tenants_store.get(tx, name, lock="FOR UPDATE")
    except NotFound:
        return True
    for project in await projects_store.deleting(tx, name):
        if await projects_store.empty(tx, name, project):
            await projects_store.delete(tx, name, project)
            await events.publish(tx, "project-deleted", messages.project_name(name, project))
    if row["state"] != "DELETING":
        return False
    for cluster_uid in await tenants_store.clusters(tx, name):
        if not await environments_store.quotas(tx, name, cluster_uid):
            await derive.withdraw(tx, row, cluster_uid)
    if await desired.holds(tx, name) or await projects_store.count(tx, name):
        return False
    await tenants_store.delete(tx, name)
    await events.publish(tx, "tenant-deleted", messages.tenant(row, full=True))
    return True


async def pending(tx: Tx, name: str) -> list[str]:
    """What holds a tenant's deletion up, a sentence each."""
    return [_sentence(row) for row in await desired.unconfirmed(tx, name)]


def _sentence(row: Row) -> str:
    what = f"cluster {row['cluster']} has not confirmed the removal of {row['kind']} {row['name']}"
    if not row["online"]:
        return f"{what}: it is offline"
    why = row["confirmation_needed"] or row["message"]
    return f"{what}: {why}" if why else what
