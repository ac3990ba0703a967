"""The nightly comparison of desired state with what it is derived from: planted inconsistencies are found, told and put right."""

from __future__ import annotations

from uuid import UUID

import pytest

from kubegems.fleet.v1 import upkeep_service_pb2 as wire
from libs.clock import new_id
from services.gateway.fleet import desired
from services.gateway.fleet.desired import Ref
from services.gateway.tenancy.tests.house import House


async def _reconcile(house: House, tenant: str) -> wire.ReconcileTenantResponse:
    request = wire.ReconcileTenantRequest(tenant=f"tenants/{tenant}")
    reply: wire.ReconcileTenantResponse = await house.call("UpkeepService/ReconcileTenant", request, service="worker")
    return reply


async def _objects(house: House, uid: str) -> set[tuple[str, str, str, bytes]]:
    return {(o.kind, o.name, o.uid, o.manifest) for o in (await house.fetch(uid)).objects}


async def test_what_is_as_it_should_be_is_left_alone(house: House) -> None:
    """Nothing is told, and no cluster gets a new generation."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.environment(tenant, cluster)
    before = await house.fetch(uid)
    found = await _reconcile(house, tenant)
    assert (found.compared, list(found.repaired)) == (4, [])
    assert (await house.fetch(uid)).generation == before.generation


@pytest.mark.parametrize("kind", ["Tenant", "TenantResourceQuota", "TenantNetworkPolicy", "Environment"])
@pytest.mark.parametrize("how", ["lost", "changed", "of another row"])
async def test_an_object_that_is_lost_or_not_as_its_row_says_comes_back(house: House, kind: str, how: str) -> None:
    """Whichever it is; it is told by cluster, kind and name, and a second look finds nothing."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.environment(tenant, cluster)
    sound = await _objects(house, uid)
    where = "WHERE cluster_uid = $1 AND kind = $2"
    [row] = await house.sql(f"SELECT name FROM fleet.desired_objects {where}", UUID(uid), kind)
    plant = {
        "lost": f"DELETE FROM fleet.desired_objects {where}",
        "changed": "UPDATE fleet.desired_objects SET manifest = '{\"spec\":{}}' " + where,
        "of another row": f"UPDATE fleet.desired_objects SET uid = gen_random_uuid() {where}",
    }[how]
    await house.sql(plant, UUID(uid), kind)
    found = await _reconcile(house, tenant)
    assert list(found.repaired) == [f"{cluster} {kind} {row['name']}"]
    assert await _objects(house, uid) == sound
    assert list((await _reconcile(house, tenant)).repaired) == []


async def test_an_object_without_a_row_is_buried(house: House) -> None:
    """An environment that is no more, and the tenant's objects on a cluster where it has no quota: by tombstone, never by absence."""
    cluster, uid = await house.cluster()
    other, other_uid = await house.cluster()
    tenant = await house.tenant(cluster)
    [row] = await house.sql("SELECT uid FROM tenancy.tenants WHERE name = $1", tenant)
    left = Ref("Environment", f"{tenant}-shop-gone", new_id(), tenant)
    there = Ref("Tenant", tenant, row["uid"], tenant)
    async with house.database.transaction() as tx:
        await desired.put(tx, UUID(uid), left, {"spec": {}})
        await desired.put(tx, UUID(other_uid), there, {"spec": {}})
    found = await _reconcile(house, tenant)
    assert sorted(found.repaired) == sorted([f"{cluster} Environment {left.name}", f"{other} Tenant {tenant}"])
    for at, ref in ((uid, left), (other_uid, there)):
        state = await house.fetch(at)
        assert (ref.kind, ref.name) not in {(o.kind, o.name) for o in state.objects}
        assert (ref.kind, ref.name, str(ref.uid)) in {(t.kind, t.name, t.uid) for t in state.tombstones}
    assert list((await _reconcile(house, tenant)).repaired) == []
