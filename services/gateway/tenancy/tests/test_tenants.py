"""Tenants, projects and quotas."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from kubegems.messages.v1 import events_pb2
from kubegems.tenancy.v1 import project_pb2, project_service_pb2, quota_service_pb2, tenant_pb2, tenant_service_pb2
from services.gateway.tenancy.tests.house import HARD, QUOTA, House, refused


async def _delete_tenant(house: House, tenant: str, etag: str = "") -> Any:
    return await house.call("TenantService/DeleteTenant", tenant_service_pb2.DeleteTenantRequest(name=f"tenants/{tenant}", etag=etag))


async def _delete_project(house: House, name: str) -> Any:
    return await house.call("ProjectService/DeleteProject", project_service_pb2.DeleteProjectRequest(name=name))


async def _delete_quota(house: House, tenant: str, cluster: str) -> None:
    request = quota_service_pb2.DeleteTenantQuotaRequest(name=f"tenants/{tenant}/quotas/{cluster}")
    await house.call("QuotaService/DeleteTenantQuota", request)


async def _update_tenant(house: House, tenant: tenant_pb2.Tenant, *paths: str) -> Any:
    request = tenant_service_pb2.UpdateTenantRequest(tenant=tenant, update_mask=FieldMask(paths=paths))
    return await house.call("TenantService/UpdateTenant", request)


async def test_names_are_given_out_once(house: House) -> None:
    """A name that is taken, malformed or would make system namespaces is refused, and nothing changes."""
    tenant = await house.tenant()
    before = await house.everything()
    with refused("ALREADY_EXISTS", f"tenants/{tenant}"):
        await house.tenant(name=tenant)
    with refused("ALREADY_EXISTS", "projects/shop"):
        await house.project(tenant, "shop")
    for bad in ("Acme", "1acme", "a" * 31, "a_b", "a-", "kube", "kubegems", "kubegems-x", "gems"):
        with refused("INVALID_ARGUMENT", "tenant_id"):
            await house.tenant(name=bad)
    with refused("NOT_FOUND", "tenants/none"):
        await house.project("none", "shop")
    with refused("ABORTED"):
        await _update_tenant(house, tenant_pb2.Tenant(name=f"tenants/{tenant}", display_name="x", etag='"3"'))
    with refused("NOT_FOUND"):
        await house.get_tenant("none")
    assert await house.everything() == before


async def test_concurrent_creates_of_one_name_make_one(house: House) -> None:
    """Of two creates at once, one gets ALREADY_EXISTS."""
    request = tenant_service_pb2.CreateTenantRequest(tenant_id="twin")
    results = await asyncio.gather(*(house.call("TenantService/CreateTenant", request) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(r, tenant_pb2.Tenant) for r in results) == 1
    assert sum(getattr(r, "reason", "") == "ALREADY_EXISTS" for r in results) == 3


async def test_a_mere_member_sees_names_only(house: House) -> None:
    """A tenant member sees the tenant's name, an environment's operator the project's name, an admin everything."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster, description="secret plans")
    await house.environment(tenant, cluster)
    member, operator, admin = await house.user(), await house.user(), await house.user()
    await house.member(f"tenants/{tenant}", member, "MEMBER")
    await house.member(f"tenants/{tenant}", admin, "ADMIN")
    await house.member(f"tenants/{tenant}/projects/shop/environments/dev", operator, "OPERATOR")
    for user in (member, operator):
        seen = await house.get_tenant(tenant, user)
        assert (seen.name, seen.description, seen.uid, seen.etag) == (f"tenants/{tenant}", "", "", "")
    assert (await house.get_tenant(tenant, admin)).description == "secret plans"
    request = project_service_pb2.GetProjectRequest(name=f"tenants/{tenant}/projects/shop")
    assert not (await house.call("ProjectService/GetProject", request, operator)).uid
    assert (await house.call("ProjectService/GetProject", request, admin)).uid
    with refused("NOT_FOUND"):
        await house.call("ProjectService/GetProject", request, member)
    listed = await house.call("TenantService/ListTenants", tenant_service_pb2.ListTenantsRequest(), member)
    assert [(t.name, t.uid) for t in listed.tenants] == [(f"tenants/{tenant}", "")]
    assert listed.total_size == 1


async def test_isolation_switches_reach_every_cluster_of_the_tenant(house: House) -> None:
    """Tenant, project and environment switches end up in one TenantNetworkPolicy per cluster."""
    (one, uid_one), (two, uid_two) = await house.cluster(), await house.cluster()
    tenant = await house.tenant(one)
    await house.quota(tenant, two, HARD)
    await _update_tenant(house, tenant_pb2.Tenant(name=f"tenants/{tenant}", isolated=True))
    await house.project(tenant, "alone", isolated=True)
    for uid in (uid_one, uid_two):
        spec = await house.spec(uid, "TenantNetworkPolicy", tenant)
        assert (spec["tenantIsolated"], spec["projectNetworkPolicies"]) == (True, [{"name": "alone"}])
    off = project_pb2.Project(name=f"tenants/{tenant}/projects/alone")
    request = project_service_pb2.UpdateProjectRequest(project=off, update_mask=FieldMask(paths=["isolated"]))
    await house.call("ProjectService/UpdateProject", request)
    assert (await house.spec(uid_two, "TenantNetworkPolicy", tenant))["projectNetworkPolicies"] == []


@pytest.mark.parametrize(("role", "switches", "renames"), [("ADMIN", True, True), ("OPS", True, False), ("DEV", False, False)])
async def test_ops_hold_the_isolation_switch_and_nothing_else_of_a_project(
    house: House, role: str, *, switches: bool, renames: bool
) -> None:
    """Ops may isolate their project, also by sending all of it back, but a text that becomes different is refused and kept."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    name = f"tenants/{tenant}/projects/shop"
    user = await house.user()
    await house.member(name, user, role)

    async def update(*paths: str, **fields: Any) -> Any:
        mask = FieldMask(paths=paths)
        request = project_service_pb2.UpdateProjectRequest(project=project_pb2.Project(name=name, **fields), update_mask=mask)
        return await house.call("ProjectService/UpdateProject", request, user)

    if switches:
        assert (await update(isolated=True)).isolated
        assert not (await update("*", isolated=False)).isolated
    else:
        with refused("PERMISSION_DENIED", "tenancy.isolation.update"):
            await update(isolated=True)
    if renames:
        assert (await update(display_name="Shop", isolated=True)).display_name == "Shop"
    else:
        with refused("PERMISSION_DENIED", "tenancy.projects.update" if switches else "tenancy.isolation.update"):
            await update(display_name="Shop", isolated=True)
        (row,) = await house.sql("SELECT display_name, isolated FROM tenancy.projects WHERE tenant = $1 AND name = 'shop'", tenant)
        assert row == {"display_name": "", "isolated": False}


async def test_concurrent_switches_lose_nothing(house: House) -> None:
    """Projects isolated at the same time all end up in the policy."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    await asyncio.gather(*(house.project(tenant, f"p{i}", isolated=True) for i in range(6)))
    spec = await house.spec(uid, "TenantNetworkPolicy", tenant)
    assert spec["projectNetworkPolicies"] == [{"name": f"p{i}"} for i in range(6)]


async def test_suspension_stops_new_things_and_no_cluster_notices(house: House) -> None:
    """A suspended tenant keeps what it has, takes nothing new, and resumes; asking twice changes nothing."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    before = (await house.fetch(uid)).generation
    request = tenant_service_pb2.SuspendTenantRequest(name=f"tenants/{tenant}")
    first = await house.call("TenantService/SuspendTenant", request)
    assert first.state == tenant_pb2.Tenant.SUSPENDED
    assert (await house.call("TenantService/SuspendTenant", request)).etag == first.etag
    with refused("TENANT_SUSPENDED"):
        await house.project(tenant, "more")
    with refused("TENANT_SUSPENDED"):
        await house.environment(tenant, cluster)
    assert (await house.fetch(uid)).generation == before
    resumed = await house.call("TenantService/ResumeTenant", tenant_service_pb2.ResumeTenantRequest(name=f"tenants/{tenant}"))
    assert resumed.state == tenant_pb2.Tenant.ACTIVE
    await house.environment(tenant, cluster)


async def test_a_tenant_with_anything_left_stays(house: House) -> None:
    """Projects and environments are named in the refusal, and nothing changes."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster)
    before = await house.everything()
    with refused("TENANT_NOT_EMPTY", env.name, f"tenants/{tenant}/projects/shop"):
        await _delete_tenant(house, tenant)
    with refused("PROJECT_NOT_EMPTY", env.name):
        await _delete_project(house, f"tenants/{tenant}/projects/shop")
    with refused("ENVIRONMENTS_LEFT", env.name):
        await _delete_quota(house, tenant, cluster)
    assert await house.everything() == before


async def test_a_tenant_goes_when_every_cluster_has_confirmed(house: House) -> None:
    """DELETING with what it waits for, the name taken; environment, project and tenant go one after another."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster)
    await house.obey(uid)
    await house.delete_environment(env.name)
    assert (await _delete_project(house, f"tenants/{tenant}/projects/shop")).state == project_pb2.Project.DELETING
    deleting = await _delete_tenant(house, tenant)
    assert deleting.state == tenant_pb2.Tenant.DELETING
    assert deleting.pending == [f"cluster {cluster} has not confirmed the removal of Environment {env.namespace}"]
    await house.sql("UPDATE fleet.clusters SET online = false WHERE name = $1", cluster)
    assert "offline" in (await house.get_tenant(tenant)).pending[0]
    with refused("ALREADY_EXISTS"):
        await house.tenant(name=tenant)
    await house.obey(uid)
    kinds = [t.kind for t in (await house.fetch(uid)).tombstones]
    assert kinds == ["TenantNetworkPolicy", "TenantResourceQuota", "Tenant"]
    assert len((await house.get_tenant(tenant)).pending) == 3
    await house.obey(uid)
    with refused("NOT_FOUND"):
        await house.get_tenant(tenant)
    assert not (await house.fetch(uid)).objects
    await house.tenant(name=tenant)


async def test_an_empty_tenant_goes_at_once(house: House) -> None:
    """Without a cluster that holds something of it, nothing is waited for."""
    tenant = await house.tenant()
    await _delete_project(house, f"tenants/{tenant}/projects/shop")
    user = await house.user()
    await house.member(f"tenants/{tenant}", user, "ADMIN")
    gone = await _delete_tenant(house, tenant)
    assert (gone.state, list(gone.pending)) == (tenant_pb2.Tenant.DELETING, [])
    assert await house.roles(user) == set()
    with refused("NOT_FOUND"):
        await house.get_tenant(tenant)


async def test_quota_tells_what_is_allocated_and_used(house: House) -> None:
    """Allocated is the sum of the environments' quotas, used what the cluster counted."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.environment(tenant, cluster, "one", quota={"limits.cpu": "1500m", "limits.memory": "1Gi"})
    await house.environment(tenant, cluster, "two", quota={"limits.cpu": "2", "limits.memory": "512Mi"})
    await house.report(uid, *await house.statuses(uid, "READY", used={"limits.cpu": "1"}))
    request = quota_service_pb2.GetTenantQuotaRequest(name=f"tenants/{tenant}/quotas/{cluster}")
    quota = await house.call("QuotaService/GetTenantQuota", request)
    assert dict(quota.allocated) == {"limits.cpu": "3500m", "limits.memory": "1536Mi", "requests.storage": "0"}
    assert dict(quota.used) == {"limits.cpu": "1"}
    assert await house.spec(uid, "TenantResourceQuota", tenant) == {"hard": HARD}
    listed = await house.call("QuotaService/ListTenantQuotas", quota_service_pb2.ListTenantQuotasRequest(parent=f"tenants/{tenant}"))
    assert [q.name for q in listed.quotas] == [quota.name]


@pytest.mark.parametrize(
    ("hard", "reason", "text"),
    [
        ({**HARD, "limits.cpu": "3"}, "QUOTA_IN_USE", "4"),
        ({**HARD, "pods": "10"}, "QUOTA_IN_USE", "pods"),
        ({**HARD, "limits.cpu": "many"}, "INVALID_ARGUMENT", "limits.cpu"),
        ({"cpu": "1", "requests.cpu": "1"}, "INVALID_ARGUMENT", "requests.cpu"),
        ({}, "INVALID_ARGUMENT", "quota.hard"),
    ],
)
async def test_a_quota_cannot_go_below_what_is_held(house: House, hard: dict[str, str], reason: str, text: str) -> None:
    """Neither below the sum, nor to a resource that an environment leaves open, nor to nonsense; nothing changes."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.environment(tenant, cluster)
    before = await house.everything()
    with refused(reason, text):
        await house.quota(tenant, cluster, hard)
    with refused("ABORTED"):
        await house.quota(tenant, cluster, HARD, etag='"8"')
    with refused("NOT_FOUND", "clusters/none"):
        await house.quota(tenant, "none", HARD)
    assert await house.everything() == before


async def test_only_the_platform_sets_quotas(house: House) -> None:
    """A tenant admin cannot raise its own quota."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    admin = await house.user()
    await house.member(f"tenants/{tenant}", admin, "ADMIN")
    request = quota_service_pb2.UpdateTenantQuotaRequest()
    request.quota.name = f"tenants/{tenant}/quotas/{cluster}"
    request.quota.hard.update({"limits.cpu": "1000"})
    with refused("PERMISSION_DENIED"):
        await house.call("QuotaService/UpdateTenantQuota", request, admin)


async def test_a_smaller_environment_leaves_room_for_another(house: House) -> None:
    """Sums count what environments hold now."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.environment(tenant, cluster, "one", quota={**QUOTA, "limits.cpu": "15"})
    with refused("QUOTA_EXCEEDED", "5 left"):
        await house.environment(tenant, cluster, "two", quota={**QUOTA, "limits.cpu": "6"})
    await house.environment(tenant, cluster, "two", quota={**QUOTA, "limits.cpu": "5"})


async def test_changes_are_told_with_the_transaction(house: House) -> None:
    """Each change leaves one event in the outbox; a refused one leaves none."""
    tenant = await house.tenant()
    rows = await house.sql(
        "SELECT subject, type, payload FROM tenancy.outbox WHERE payload LIKE ('%' || $1 || '%')::bytea ORDER BY seq", tenant
    )
    assert [row["subject"] for row in rows] == ["gems.platform.tenancy.tenant-created", "gems.platform.tenancy.project-created"]
    assert tenant_pb2.Tenant.FromString(rows[0]["payload"]).name == f"tenants/{tenant}"


async def test_quota_decisions_are_told_to_the_tenants_admins(house: House) -> None:
    """A message goes with the transaction: when limits change and when they are taken away; the same limits again are no news."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.quota(tenant, cluster, {**HARD, "limits.cpu": "7"})
    await house.quota(tenant, cluster, {**HARD, "limits.cpu": "7"})
    await house.call(
        "QuotaService/DeleteTenantQuota", quota_service_pb2.DeleteTenantQuotaRequest(name=f"tenants/{tenant}/quotas/{cluster}")
    )
    rows = await house.sql("SELECT payload FROM tenancy.outbox WHERE subject = 'gems.notice.posted' ORDER BY seq")
    notices = [n for row in rows if tenant in (n := events_pb2.NoticePosted.FromString(row["payload"])).resource]
    assert [n.category for n in notices] == ["QUOTA_DECIDED", "QUOTA_DECIDED", "QUOTA_DELETED"]
    assert {(*n.audiences, n.resource) for n in notices} == {(f"tenants/{tenant}/roles/admin", f"tenants/{tenant}/quotas/{cluster}")}
    assert "limits.cpu 7" in notices[1].body
    assert "users/" in notices[1].body
