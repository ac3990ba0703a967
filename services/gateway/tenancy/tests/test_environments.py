"""Environments: made, shown, changed and let go."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from kubegems.agent.v1 import desired_state_service_pb2 as desired_pb
from kubegems.tenancy.v1 import environment_service_pb2
from libs.faults import Fault
from services.gateway.tenancy.tests.house import QUOTA, Env, House, refused


async def _update(house: House, env: Env, *paths: str, user: str = "admin") -> Any:
    request = environment_service_pb2.UpdateEnvironmentRequest(environment=env, update_mask=FieldMask(paths=paths))
    return await house.call("EnvironmentService/UpdateEnvironment", request, user)


async def test_the_walk_through_makes_what_the_cluster_needs(house: House) -> None:
    """One environment leaves four objects in the cluster's set, with defaults where nothing was given."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster, isolation=Env.Isolation(environment=True), delete_policy=Env.DELETE_NAMESPACE)
    assert (env.state, env.namespace) == (Env.PENDING, f"{tenant}-shop-dev")
    assert dict(env.limit_range.default) == {"cpu": "500m", "memory": "512Mi"}
    assert dict(env.limit_range.default_request) == {"cpu": "100m", "memory": "128Mi"}
    assert env.pod_security == Env.BASELINE
    kinds = [o.kind for o in (await house.fetch(uid)).objects]
    assert kinds == ["Tenant", "TenantResourceQuota", "TenantNetworkPolicy", "Environment"]
    assert await house.spec(uid, "Environment", env.namespace) == {
        "tenant": tenant, "project": "shop", "environment": "dev", "namespace": env.namespace, "deletePolicy": "delNamespace",
        "adoptNamespace": False, "resourceQuota": QUOTA, "resourceQuotaName": "default", "limitRangeName": "default",
        "limitRange": [
            {"type": "Container", "default": {"cpu": "500m", "memory": "512Mi"}, "defaultRequest": {"cpu": "100m", "memory": "128Mi"}}
        ],
        "podSecurity": "baseline",
    }  # fmt: skip
    policy = await house.spec(uid, "TenantNetworkPolicy", tenant)
    assert policy["environmentNetworkPolicies"] == [{"project": "shop", "name": "dev"}]


async def test_state_follows_the_clusters_reports(house: House) -> None:
    """PENDING until the cluster speaks of this generation, READY, DEGRADED with its conditions, UNKNOWN while offline."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    name = (await house.environment(tenant, cluster)).name
    pending = await house.get_environment(name)
    assert pending.state == Env.PENDING
    assert [(c.type, c.reason) for c in pending.conditions] == [("Applied", "WaitingForCluster")]
    await house.report(uid, *await house.statuses(uid, "READY", used={"limits.cpu": "1"}, hard={"limits.cpu": "4"}))
    ready = await house.get_environment(name)
    assert (ready.state, dict(ready.used), dict(ready.hard)) == (Env.READY, {"limits.cpu": "1"}, {"limits.cpu": "4"})
    condition = desired_pb.ObjectStatus.Condition(type="QuotaReady", status="False", reason="Forbidden", message="no")
    condition.transition_time.FromJsonString("2026-01-01T00:00:00.123456789Z")
    await house.report(uid, *await house.statuses(uid, "DEGRADED", conditions=[condition]))
    degraded = await house.get_environment(name)
    assert degraded.state == Env.DEGRADED
    assert [(c.type, c.reason, c.transition_time.nanos) for c in degraded.conditions] == [("QuotaReady", "Forbidden", 123456789)]
    await house.sql("UPDATE fleet.clusters SET online = false WHERE name = $1", cluster)
    offline = await house.get_environment(name)
    assert offline.state == Env.UNKNOWN
    assert cluster in offline.conditions[0].message
    await _update(house, Env(name=name, quota={**QUOTA, "limits.cpu": "5"}), "quota")
    assert (await house.get_environment(name)).state == Env.PENDING


async def test_updates_change_only_what_was_asked(house: House) -> None:
    """A mask limits an update; a no-op leaves the generation alone; a quota change reaches the set."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster, display_name="Dev", description="first")
    before = (await house.fetch(uid)).generation
    named = await _update(house, Env(name=env.name, display_name="New", description="ignored"), "display_name")
    assert (named.display_name, named.description, named.etag) == ("New", "first", '"2"')
    assert (await house.fetch(uid)).generation == before
    changed = await _update(house, Env(name=env.name, quota={"limits.cpu": "2"}, etag=named.etag))
    assert dict(changed.quota) == {"limits.cpu": "2", "limits.memory": "0", "requests.storage": "0"}
    assert (await house.spec(uid, "Environment", env.namespace))["resourceQuota"] == dict(changed.quota)
    assert (await house.fetch(uid)).generation == before + 1


async def test_bad_input_changes_nothing(house: House) -> None:
    """Every wrong field, name or state is refused with its code, and no row, object or event differs after."""
    cluster, _ = await house.cluster()
    other, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    user = await house.user()
    await house.member(f"tenants/{tenant}", user, "ADMIN")
    env = await house.environment(tenant, cluster)
    before = await house.everything()
    with refused("ALREADY_EXISTS", "environments/dev"):
        await house.environment(tenant, cluster)
    for bad in ("Dev", "-dev", "d" * 31, "dev_1", ""):
        with refused("INVALID_ARGUMENT", "environment_id"):
            await house.environment(tenant, cluster, bad)
    with refused("NOT_FOUND", "tenants/none"):
        await house.environment("none", cluster, "two")
    with refused("NOT_FOUND", f"tenants/{tenant}/projects/none") as found:
        await house.environment(tenant, cluster, "two", project="none")
    assert found.fault is not None
    assert found.fault.metadata["resource_name"] == f"tenants/{tenant}/projects/none"
    with refused("INVALID_ARGUMENT", "environment.cluster", "clusters/none does not exist"):
        await house.environment(tenant, "none", "two")
    with refused("NO_QUOTA"):
        await house.environment(tenant, other, "two")
    with refused("INVALID_ARGUMENT", "environment.cluster", f"clusters/{other} does not exist"):
        await house.environment(tenant, other, "two", user=user)
    for namespace in ("default", "kube-system", "kubegems-system", "gems-x", "other-ns"):
        with refused("INVALID_ARGUMENT", "environment.namespace", namespace):
            await house.environment(tenant, cluster, "two", namespace=namespace, user=user)
    with refused("INVALID_ARGUMENT", "environment.namespace"):
        await house.environment(tenant, cluster, "two", namespace="kube-public")
    with refused("INVALID_ARGUMENT", "environment.namespace", "another environment's"):
        await house.environment(tenant, cluster, "two", namespace=env.namespace)
    with refused("PERMISSION_DENIED", "adopt_namespace"):
        await house.environment(tenant, cluster, "two", adopt_namespace=True, user=user)
    with refused("PERMISSION_DENIED", "pod_security"):
        await house.environment(tenant, cluster, "two", pod_security=Env.PRIVILEGED, user=user)
    with refused("INVALID_ARGUMENT", "quota"):
        await house.environment(tenant, cluster, "two", quota={"limits.cpu": "four"})
    with refused("INVALID_ARGUMENT", "quota[limits.cpu]"):
        await house.environment(tenant, cluster, "two", quota={"limits.cpu": "-1"})
    with refused("INVALID_ARGUMENT", "quota[cpus]"):
        await house.environment(tenant, cluster, "two", quota={"cpus": "1"})
    with refused("INVALID_ARGUMENT", "limit_range.default_request[cpu]"):
        await house.environment(tenant, cluster, "two", limit_range=Env.LimitRange(default={"cpu": "1"}, default_request={"cpu": "2"}))
    with refused("QUOTA_EXCEEDED", "limits.cpu", "17", "16") as over:
        await house.environment(tenant, cluster, "two", quota={**QUOTA, "limits.cpu": "17"})
    assert over.fault is not None
    assert over.fault.metadata == {"resource": "limits.cpu", "asked": "17", "left": "16"}
    with refused("ABORTED"):
        await _update(house, Env(name=env.name, description="x", etag='"7"'))
    with refused("INVALID_ARGUMENT", "environment.cluster"):
        await _update(house, Env(name=env.name, cluster=f"clusters/{other}"))
    with refused("INVALID_ARGUMENT", "environment.namespace"):
        await _update(house, Env(name=env.name, namespace=f"{tenant}-else"), "namespace")
    with refused("INVALID_ARGUMENT", "update_mask"):
        await _update(house, Env(name=env.name), "state")
    with refused("INVALID_ARGUMENT", "environment.name"):
        await _update(house, Env(description="x"))
    with refused("QUOTA_EXCEEDED"):
        await _update(house, Env(name=env.name, quota={"limits.cpu": "21"}))
    with refused("ABORTED"):
        await house.delete_environment(env.name, etag='"9"')
    assert await house.everything() == before


async def test_a_namespace_gets_a_hash_when_its_name_is_taken_or_long(house: House) -> None:
    """`a-b/c` and `a/b-c` never share a namespace, and none is longer than 63 characters."""
    cluster, uid = await house.cluster()
    first = await house.tenant(cluster, "a-b")
    second = await house.tenant(cluster, "a")
    await house.project(first, "c")
    await house.project(second, "b-c")
    one = await house.environment(first, cluster, "d", project="c")
    two = await house.environment(second, cluster, "d", project="b-c")
    assert one.namespace == "a-b-c-d"
    assert two.namespace.startswith("a-b-c-d-")
    assert len(two.namespace) == len("a-b-c-d-") + 8
    await house.project(first, "p" * 30)
    long = await house.environment(first, cluster, "e" * 30, project="p" * 30)
    assert len(long.namespace) <= 63
    assert await house.spec(uid, "Environment", long.namespace) is not None


async def test_concurrent_creates_cannot_overshoot_the_quota(house: House) -> None:
    """Of ten creates at once that ask for a quarter of the quota each, four succeed; the sum is never over."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    asked = {"limits.cpu": "5", "limits.memory": "1Gi", "requests.storage": "1Gi"}
    results = await asyncio.gather(*(house.environment(tenant, cluster, f"e{i}", quota=asked) for i in range(10)), return_exceptions=True)
    failures = [r for r in results if isinstance(r, BaseException)]
    assert all(isinstance(f, Fault) and f.reason == "QUOTA_EXCEEDED" for f in failures), failures
    assert len(failures) == 6


async def test_deletion_waits_for_the_cluster(house: House) -> None:
    """DELETING, its name and quota taken, until the removal is confirmed; the conditions tell what holds it up."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster, isolation=Env.Isolation(environment=True))
    user = await house.user()
    await house.member(env.name, user, "OPERATOR")
    await house.obey(uid)
    deleting = await house.delete_environment(env.name)
    assert deleting.state == Env.DELETING
    assert (await house.delete_environment(env.name)).state == Env.DELETING
    with refused("ALREADY_EXISTS"):
        await house.environment(tenant, cluster)
    with refused("QUOTA_EXCEEDED"):
        await house.environment(tenant, cluster, "big", quota={"limits.cpu": "20"})
    with refused("BEING_DELETED"):
        await _update(house, Env(name=env.name, description="x"), "description")
    state = await house.fetch(uid)
    assert [(t.kind, t.name, t.uid) for t in state.tombstones] == [("Environment", env.namespace, env.uid)]
    removing = desired_pb.ObjectStatus(
        kind="Environment", name=env.namespace, uid=env.uid, generation=state.generation, state=desired_pb.ObjectStatus.REMOVING,
        reason="NamespaceTerminating", message="pod web-1 has a finalizer",
    )  # fmt: skip
    await house.report(uid, removing, generation=state.generation)
    shown = await house.get_environment(env.name, user)
    assert [(c.type, c.reason, c.message) for c in shown.conditions] == [("Removed", "NamespaceTerminating", "pod web-1 has a finalizer")]
    removing.state = desired_pb.ObjectStatus.REMOVED
    await house.report(uid, removing, generation=state.generation)
    with refused("NOT_FOUND"):
        await house.get_environment(env.name)
    assert await house.roles(user) == {(tenant, "member")}
    after = await house.fetch(uid)
    assert not after.tombstones
    assert (await house.spec(uid, "TenantNetworkPolicy", tenant))["environmentNetworkPolicies"] == []
    again = await house.environment(tenant, cluster)
    assert again.uid != env.uid
    assert again.namespace == env.namespace


async def test_lists_show_what_the_caller_may_see(house: House) -> None:
    """An operator sees its environment alone; a mere tenant member none; pages follow each other without gap or double."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    small = {"limits.cpu": "1", "limits.memory": "1Gi", "requests.storage": "1Gi"}
    for i in range(5):
        await house.environment(tenant, cluster, f"e{i}", quota=small)
    operator, member, stranger = await house.user(), await house.user(), await house.user()
    await house.member(f"tenants/{tenant}/projects/shop/environments/e3", operator, "OPERATOR")
    await house.member(f"tenants/{tenant}", member, "MEMBER")
    request = environment_service_pb2.ListEnvironmentsRequest(parent=f"tenants/{tenant}/projects/shop", page_size=2)
    seen, total = [], 0
    while True:
        page = await house.call("EnvironmentService/ListEnvironments", request)
        seen += [e.name.rsplit("/", 1)[1] for e in page.environments]
        total = page.total_size
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert (seen, total) == ([f"e{i}" for i in range(5)], 5)
    everywhere = environment_service_pb2.ListEnvironmentsRequest(parent="tenants/-/projects/-")
    mine = await house.call("EnvironmentService/ListEnvironments", everywhere, operator)
    assert [e.name.rsplit("/", 1)[1] for e in mine.environments] == ["e3"]
    assert mine.environments[0].namespace
    assert not (await house.call("EnvironmentService/ListEnvironments", everywhere, member)).environments
    here = environment_service_pb2.ListEnvironmentsRequest(parent=f"tenants/{tenant}/projects/shop")
    with refused("NOT_FOUND"):
        await house.call("EnvironmentService/ListEnvironments", here, stranger)
    newest = environment_service_pb2.ListEnvironmentsRequest(
        parent=f"tenants/{tenant}/projects/-", order_by="create_time desc", filter="state = PENDING", page_size=1
    )
    assert (await house.call("EnvironmentService/ListEnvironments", newest)).environments[0].name.endswith("e4")
    with refused("INVALID_ARGUMENT", "order_by"):
        await house.call(
            "EnvironmentService/ListEnvironments",
            environment_service_pb2.ListEnvironmentsRequest(parent="tenants/-/projects/-", order_by="quota"),
        )
