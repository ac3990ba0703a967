"""QuotaService."""

from __future__ import annotations

from google.protobuf import empty_pb2

from kubegems.tenancy.v1 import quota_pb2, quota_service_pb2
from libs import pg
from libs.faults import Invalid, Precondition, Stale
from libs.pg import Record, Tx, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.fleet import clusters_store
from services.gateway.tenancy import derive, environments_store, events, messages, missing, parents, quotas_store, tenants_store
from services.gateway.tenancy.domain import names, quotas


class EnvironmentsLeft(Precondition):
    """The tenant has environments on the cluster; metadata: `left`."""

    reason = "ENVIRONMENTS_LEFT"


class QuotaService:
    """Keeps what tenants may use of each cluster."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def GetTenantQuota(self, request: quota_service_pb2.GetTenantQuotaRequest, call: Call) -> quota_pb2.TenantQuota:
        """A tenant's quota on a cluster; NotFound."""
        tenant, cluster = names.parts(request.name)
        tx = await pg.tx(call)
        return await _message(tx, await quotas_store.get(tx, tenant, cluster))

    async def ListTenantQuotas(
        self, request: quota_service_pb2.ListTenantQuotasRequest, call: Call
    ) -> quota_service_pb2.ListTenantQuotasResponse:
        """A tenant's quotas, by cluster; NotFound for the tenant."""
        (tenant,) = names.parts(request.parent)
        tx = await pg.tx(call)
        await tenants_store.get(tx, tenant)
        where = lists.Where()
        where.add("q.tenant = {}", tenant)
        found = await lists.read(tx, self._pages, call, request, source=quotas_store.SOURCE, where=where)
        shown = [await _message(tx, row) for row in found.rows]
        return quota_service_pb2.ListTenantQuotasResponse(quotas=shown, next_page_token=found.token)

    async def UpdateTenantQuota(self, request: quota_service_pb2.UpdateTenantQuotaRequest, call: Call) -> quota_pb2.TenantQuota:
        """Sets a tenant's quota on a cluster; NotFound, Invalid, Stale, QuotaInUse."""
        if not request.quota.hard:
            raise Invalid.one("quota.hard", "must name at least one resource")
        quotas.refuse(quotas.check("quota.hard", request.quota.hard))
        tenant, cluster = names.parts(request.quota.name)
        tx = await pg.tx(call)
        row = await parents.tenant(tx, tenant)
        uid = await clusters_store.hold(tx, cluster)
        hard = dict(request.quota.hard)
        changed = True
        if request.quota.etag or not await quotas_store.insert(tx, tenant, uid, hard):
            held = await quotas_store.lock(tx, tenant, uid)
            if held is None:
                raise Stale(f"{request.quota.name} does not exist any more; leave the etag out to make it")
            pg.check_etag(request.quota.etag, held["version"])
            quotas.cover(hard, await environments_store.quotas(tx, tenant, uid))
            await quotas_store.update(tx, tenant, uid, hard)
            changed = held["hard"] != hard
        await derive.presence(tx, row, uid, hard)
        message = await _message(tx, await quotas_store.get(tx, tenant, cluster))
        call.tenant = names.tenant(tenant)
        await events.publish(tx, "quota-updated", message)
        if changed:
            await events.quota_decided(tx, message, call.caller.name)
        return message

    async def DeleteTenantQuota(self, request: quota_service_pb2.DeleteTenantQuotaRequest, call: Call) -> empty_pb2.Empty:
        """Takes a tenant off a cluster; EnvironmentsLeft names those that are still there."""
        tenant, cluster = names.parts(request.name)
        tx = await pg.tx(call)
        row = await tenants_store.get(tx, tenant, lock="FOR SHARE")
        held = await quotas_store.get(tx, tenant, cluster)
        if await quotas_store.lock(tx, tenant, held["cluster_uid"]) is None:
            raise missing.not_found(request.name, "TenantQuota")
        left = sorted(await environments_store.quotas(tx, tenant, held["cluster_uid"]))
        if left:
            raise EnvironmentsLeft(
                f"clusters/{cluster} still holds {', '.join(left[:20])}; delete them first", {"left": ",".join(left[:20])}
            )
        message = await _message(tx, held)
        await derive.withdraw(tx, row, held["cluster_uid"])
        call.tenant = names.tenant(tenant)
        await events.publish(tx, "quota-deleted", message)
        await events.quota_decided(tx, message, call.caller.name, taken=True)
        return empty_pb2.Empty()


async def _message(tx: Tx, row: Record) -> quota_pb2.TenantQuota:
    held = await environments_store.quotas(tx, row["tenant"], row["cluster_uid"])
    return messages.quota(row, held.values())
