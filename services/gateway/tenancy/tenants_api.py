"""TenantService."""

from __future__ import annotations

from typing import Any

from kubegems.tenancy.v1 import tenant_pb2, tenant_service_pb2
from libs import clock, pg
from libs.faults import Invalid, Precondition
from libs.pg import Record, Tx, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.tenancy import derive, events, masks, messages, missing, parents, settle, tenants_store
from services.gateway.tenancy.domain import names, namespaces

_FIELDS = ("display_name", "description", "isolated")
VIEW = "tenancy.tenants.view"


class TenantNotEmpty(Precondition):
    """Projects or environments are left in it; metadata: `left`."""

    reason = "TENANT_NOT_EMPTY"


class TenantService:
    """Keeps tenants."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def CreateTenant(self, request: tenant_service_pb2.CreateTenantRequest, call: Call) -> tenant_pb2.Tenant:
        """Makes a tenant; AlreadyExists, Invalid."""
        tenant = request.tenant_id
        if not names.valid(tenant) or namespaces.reserves(tenant):
            raise Invalid.one("tenant_id", f"{tenant!r} cannot be a tenant's name: its namespaces would be the system's or not valid")
        tx = await pg.tx(call)
        if not await tenants_store.insert(tx, clock.new_id(), tenant, _fields(request.tenant)):
            raise missing.taken(names.tenant(tenant))
        return await _told(tx, call, tenant, "tenant-created")

    async def GetTenant(self, request: tenant_service_pb2.GetTenantRequest, call: Call) -> tenant_pb2.Tenant:
        """A tenant; only its name to a mere member; NotFound."""
        tx = await pg.tx(call)
        return await _message(tx, call, await tenants_store.get(tx, *names.parts(request.name)))

    async def ListTenants(self, request: tenant_service_pb2.ListTenantsRequest, call: Call) -> tenant_service_pb2.ListTenantsResponse:
        """The tenants that the caller may see."""
        tx = await pg.tx(call)
        where = lists.Where()
        where.within(call.caller.rights.scopes("tenancy.tenants.list"), "t.name", tenants_store.NAME)
        found = await lists.read(tx, self._pages, call, request, source=tenants_store.SOURCE, where=where)
        shown = [await _message(tx, call, row) for row in found.rows]
        return tenant_service_pb2.ListTenantsResponse(tenants=shown, next_page_token=found.token, total_size=found.total)

    async def UpdateTenant(self, request: tenant_service_pb2.UpdateTenantRequest, call: Call) -> tenant_pb2.Tenant:
        """Changes a tenant; NotFound, Stale, Invalid."""
        changed = masks.paths(request.tenant, request.update_mask, known=_FIELDS)
        (tenant,) = names.given(request.tenant.name, "tenant.name", "tenants/{tenant}")
        tx = await pg.tx(call)
        row = await tenants_store.get(tx, tenant, lock="FOR UPDATE")
        pg.check_etag(request.tenant.etag, row["version"])
        parents.refuse_deleting(row, names.tenant(tenant))
        await tenants_store.update(tx, tenant, {f: getattr(request.tenant, f) if f in changed else row[f] for f in _FIELDS})
        if "isolated" in changed:
            await derive.networks(tx, tenant)
        return await _told(tx, call, tenant, "tenant-updated")

    async def DeleteTenant(self, request: tenant_service_pb2.DeleteTenantRequest, call: Call) -> tenant_pb2.Tenant:
        """Starts to delete a tenant; TenantNotEmpty names what is left in it."""
        (tenant,) = names.parts(request.name)
        tx = await pg.tx(call)
        row = await tenants_store.get(tx, tenant, lock="FOR UPDATE")
        pg.check_etag(request.etag, row["version"])
        left = await tenants_store.contents(tx, tenant)
        if left:
            raise TenantNotEmpty(f"{names.tenant(tenant)} still holds {', '.join(left)}; delete them first", {"left": ",".join(left)})
        if row["state"] != "DELETING":
            await tenants_store.set_state(tx, tenant, "DELETING")
            row = await tenants_store.get(tx, tenant)
            await events.publish(tx, "tenant-updated", messages.tenant(row, full=True))
        pending = [] if await settle.tenant(tx, tenant) else await settle.pending(tx, tenant)
        call.tenant = names.tenant(tenant)
        return messages.tenant(row, full=True, pending=pending)

    async def SuspendTenant(self, request: tenant_service_pb2.SuspendTenantRequest, call: Call) -> tenant_pb2.Tenant:
        """Stops a tenant's members from acting; its clusters notice nothing."""
        return await self._move(request.name, call, "SUSPENDED", "tenant-suspended")

    async def ResumeTenant(self, request: tenant_service_pb2.ResumeTenantRequest, call: Call) -> tenant_pb2.Tenant:
        """Lets them act again."""
        return await self._move(request.name, call, "ACTIVE", "tenant-resumed")

    async def _move(self, name: str, call: Call, state: str, event: str) -> tenant_pb2.Tenant:
        (tenant,) = names.parts(name)
        tx = await pg.tx(call)
        row = await tenants_store.get(tx, tenant, lock="FOR UPDATE")
        parents.refuse_deleting(row, name)
        if row["state"] == state:
            return await _message(tx, call, row)
        await tenants_store.set_state(tx, tenant, state)
        return await _told(tx, call, tenant, event)


def _fields(message: tenant_pb2.Tenant) -> dict[str, Any]:
    return {field: getattr(message, field) for field in _FIELDS}


async def _message(tx: Tx, call: Call, row: Record) -> tenant_pb2.Tenant:
    full = call.caller.allows(VIEW, names.tenant(row["name"]))
    pending = await settle.pending(tx, row["name"]) if full and row["state"] == "DELETING" else []
    return messages.tenant(row, full=full, pending=pending)


async def _told(tx: Tx, call: Call, tenant: str, event: str) -> tenant_pb2.Tenant:
    message = messages.tenant(await tenants_store.get(tx, tenant), full=True)
    call.tenant = message.name
    call.resources.append(message.name)
    await events.publish(tx, event, message)
    return message
