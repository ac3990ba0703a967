"""What a removed cluster leaves in the hub's database: every table is looked through for its uid."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from kubegems.fleet.v1 import cluster_service_pb2, join_token_service_pb2
from kubegems.tenancy.v1 import quota_service_pb2
from libs.clock import new_id
from services.gateway.fleet import interest
from services.gateway.tenancy.tests.house import House

FILLED = {
    "fleet.clusters", "fleet.desired", "fleet.desired_objects", "fleet.statuses", "fleet.join_tokens", "fleet.granted", "fleet.interest",
    "fleet.certificates", "tenancy.environments", "tenancy.quotas",
}  # fmt: skip
LEFT = {
    "audit.events": "who did what",
    "audit.requests": "answers to request ids, for a day",
    "fleet.outbox": "events, until they are sent",
    "tenancy.outbox": "events, until they are sent",
    "fleet.removed_clusters": "the removal itself, for the broker's cleaning",
    "fleet.certificates": "revoked, so that they stay refused",
    "tenancy.burnt_names": "names that what was left behind in the cluster bears",
}


async def _traces(house: House, uid: str) -> set[str]:
    tables = await house.sql(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    found = set()
    for table in (row["name"] for row in tables):
        # serialized messages stand in bytea as the text's own bytes
        held = await house.sql(
            f"SELECT 1 FROM {table} AS t WHERE t::text LIKE '%' || $1 || '%' OR t::text LIKE '%' || $2 || '%' LIMIT 1",
            uid,
            uid.encode().hex(),
        )
        found |= {table} if held else set()
    return found


async def _filled(house: House) -> tuple[str, str, str]:
    """A cluster with something in every table that knows clusters: name, uid, tenant."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster)
    request = join_token_service_pb2.CreateJoinTokenRequest(parent=f"clusters/{cluster}")
    await house.call("JoinTokenService/CreateJoinToken", request)
    now = house.clock.now()
    await house.sql(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) VALUES ($1, $2, $3, $4)", uid[-12:], uid, now,
        now + timedelta(days=1),
    )  # fmt: skip
    await house.obey(uid)
    await house.sql("INSERT INTO fleet.granted (environment_uid, cluster_uid) VALUES ($1, $2) ON CONFLICT DO NOTHING", env.uid, uid)
    async with house.database.transaction() as tx:
        await interest.keep(tx, f"replica of {uid}", {UUID(uid): ["pods.v1."]})
    return cluster, uid, tenant


async def _interest_ends(house: House) -> None:
    """A replica stops naming the cluster: its next report replaces the last."""
    await house.sql("UPDATE fleet.interest SET expires = now() - interval '1 s'")
    async with house.database.transaction() as tx:
        await interest.keep(tx, f"another {new_id()}", {})


@pytest.mark.parametrize("force", [False, True])
async def test_a_removed_cluster_leaves_only_what_is_named_here(house: House, *, force: bool) -> None:
    """Normally, when all is confirmed, and by force: of the uid are left history, and what keeps certificates and names refused."""
    cluster, uid, tenant = await _filled(house)
    before = await _traces(house, uid)
    assert before >= FILLED, "the test looks at what it fills"
    if not force:
        await house.delete_environment(f"tenants/{tenant}/projects/shop/environments/dev")
        await house.obey(uid)
        name = f"tenants/{tenant}/quotas/{cluster}"
        await house.call("QuotaService/DeleteTenantQuota", quota_service_pb2.DeleteTenantQuotaRequest(name=name))
    await house.call("ClusterService/DeleteCluster", cluster_service_pb2.DeleteClusterRequest(name=f"clusters/{cluster}", force=force))
    if not force:
        await house.report(uid, full=True, generation=(await house.fetch(uid)).generation)
    await _interest_ends(house)
    left = await _traces(house, uid)
    assert left <= set(LEFT), left - set(LEFT)
    assert "fleet.removed_clusters" in left
    assert not await house.sql("SELECT 1 FROM fleet.certificates WHERE cluster_uid = $1 AND revoked IS NULL", uid)
