"""What must be there, and stay there, for something to be made below it."""

from __future__ import annotations

from libs.faults import Precondition
from libs.pg import Record, Tx
from libs.rpc.call import Scopes
from services.gateway.tenancy import missing, projects_store, tenants_store
from services.gateway.tenancy.domain import names


class TenantSuspended(Precondition):
    """The tenant is suspended; nothing can be made in it."""

    reason = "TENANT_SUSPENDED"


class BeingDeleted(Precondition):
    """It is going away and takes no more changes."""

    reason = "BEING_DELETED"


def refuse_deleting(row: Record, name: str) -> None:
    """Raises BeingDeleted for a row in that state."""
    if row["state"] == "DELETING":
        raise BeingDeleted(f"{name} is being deleted", {"resource_name": name})


async def tenant(tx: Tx, tenant_: str) -> Record:
    """A tenant in use, kept so until the transaction ends; NotFound, BeingDeleted, TenantSuspended."""
    row = await tenants_store.get(tx, tenant_, lock="FOR SHARE")
    refuse_deleting(row, names.tenant(tenant_))
    if row["state"] == "SUSPENDED":
        raise TenantSuspended(f"{names.tenant(tenant_)} is suspended; resume it first", {"resource_name": names.tenant(tenant_)})
    return row


async def project(tx: Tx, tenant_: str, project_: str) -> Record:
    """A project in use in a tenant in use, both kept so until the transaction ends; the tenant's row."""
    row = await tenant(tx, tenant_)
    refuse_deleting(await projects_store.get(tx, tenant_, project_, lock="FOR SHARE"), names.project(tenant_, project_))
    return row


async def seen(tx: Tx, scopes: Scopes, tenant_: str, project_: str = names.ANY) -> None:
    """Raises NotFound when a list's parent is not there or holds nothing for the caller; `-` stands for all."""
    if tenant_ == names.ANY:
        return
    name = names.tenant(tenant_) if project_ == names.ANY else names.project(tenant_, project_)
    if not _touches(scopes, name):
        raise missing.not_found(name)
    if project_ == names.ANY:
        await tenants_store.get(tx, tenant_)
    else:
        await projects_store.get(tx, tenant_, project_)


def _touches(scopes: Scopes, name: str) -> bool:
    held = scopes.trees | scopes.exact
    return scopes.covers(name) or any(scope.startswith(name + "/") for scope in held)
