"""Environments on a real API server, made with the controller's own rights."""

from __future__ import annotations

from typing import Any

import pytest

from libs.faults import NotFound, PermissionDenied
from libs.kube import KubeClient, Principal
from libs.kube.resources import (
    ENVIRONMENTS,
    EVENTS,
    LIMIT_RANGES,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    PODS,
    RESOURCE_QUOTAS,
    ROLE_BINDINGS,
    SECRETS,
    TENANT_NETWORK_POLICIES,
    TENANT_RESOURCE_QUOTAS,
    TENANTS,
)
from services.controller.domain import FINALIZER
from services.controller.tests.conftest import QUOTA, Story

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("controller")]


async def test_an_environment_becomes_ready_with_all_that_belongs_to_it(story: Story) -> None:
    """Namespace with labels, quota, limits, policy, bindings; then status, the tenant's objects and Events."""
    await story.begin(isolated=True)
    name = await story.environment()
    found = await story.ready(name)
    labels = {"gems.kubegems.io/tenant": story.tenant, "gems.kubegems.io/project": "shop", "gems.kubegems.io/environment": "dev"}
    namespace = await story.kube.get(NAMESPACES, name)
    assert {**labels, "pod-security.kubernetes.io/enforce": "baseline"}.items() <= namespace["metadata"]["labels"].items()
    assert namespace["metadata"]["annotations"]["gems.kubegems.io/environment-uid"] == f"row-{name}"
    assert "ownerReferences" not in namespace["metadata"]
    quota = await story.kube.get(RESOURCE_QUOTAS, "default", name)
    assert quota["spec"]["hard"] == QUOTA
    limits = await story.kube.get(LIMIT_RANGES, "default", name)
    assert limits["spec"]["limits"][0]["default"] == {"cpu": "500m", "memory": "512Mi"}
    policy = await story.kube.get(NETWORK_POLICIES, "default", name)
    assert {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.99.0.0/16"]}} in policy["spec"]["ingress"][0]["from"]
    bindings = {b["metadata"]["name"]: b async for b in story.kube.list(ROLE_BINDINGS, name)}
    assert {b["roleRef"]["name"]: len(b["subjects"]) for b in bindings.values()} == {"gems:operator": 4, "gems:reader": 3}
    assert all(labels.items() <= made["metadata"]["labels"].items() for made in (quota, limits, policy, *bindings.values()))
    status = found["status"]
    assert status["observedGeneration"] == found["metadata"]["generation"]
    assert status["hard"] == QUOTA
    assert status["used"]["limits.cpu"] == "0"
    assert {c["type"] for c in status["conditions"]} >= {
        "Ready", "NamespaceReady", "PodSecurityReady", "QuotaReady", "LimitRangeReady", "NetworkPolicyReady", "RightsReady",
    }  # fmt: skip
    assert found["metadata"]["finalizers"] == [FINALIZER]


async def test_the_tenants_objects_tell_what_there_is(story: Story) -> None:
    """Tenant lists environments; its quota sums hard and used; its policy says that all are isolated."""
    await story.begin(isolated=True)
    await story.environment("dev")
    await story.environment("test")
    for environment in ("dev", "test"):
        await story.ready(story.name(environment))
    await story.ready(story.tenant, TENANT_NETWORK_POLICIES)

    async def told() -> None:
        tenant = await story.kube.get(TENANTS, story.tenant)
        assert tenant["status"]["environments"] == ["shop/dev", "shop/test"]
        assert tenant["status"]["namespaces"] == [story.name("dev"), story.name("test")]
        quota = await story.kube.get(TENANT_RESOURCE_QUOTAS, story.tenant)
        assert quota["status"]["allocated"] == {"limits.cpu": "8", "requests.storage": "20Gi"}
        assert quota["status"]["used"] == {"limits.cpu": "0", "requests.storage": "0"}

    await story.wait(told, within=5)


async def test_more_given_than_there_is_shows_on_the_tenants_quota(story: Story) -> None:
    """Fits turns False and names the resource."""
    await story.begin()
    await story.environment(resourceQuota={"limits.cpu": "30"})

    async def told() -> None:
        found = await story.conditions(story.tenant, TENANT_RESOURCE_QUOTAS)
        assert (found["Ready"]["status"], found["Fits"]["message"]) == ("False", "limits.cpu: 30 given of 20")

    await story.wait(told, within=5)


async def test_a_changed_spec_reaches_the_cluster(story: Story) -> None:
    """Quota, Pod Security and names of quota and limits follow; what the old names stood for goes."""
    await story.begin()
    name = await story.environment()
    await story.ready(name)
    await story.environment(resourceQuota={"limits.cpu": "2"}, podSecurity="restricted", resourceQuotaName="team", limitRange=[])
    await story.ready(name)
    assert (await story.kube.get(RESOURCE_QUOTAS, "team", name))["spec"]["hard"] == {"limits.cpu": "2"}
    await story.absent(RESOURCE_QUOTAS, "default", name)
    await story.absent(LIMIT_RANGES, "default", name)
    namespace = await story.kube.get(NAMESPACES, name)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


async def test_what_the_server_refuses_is_told_and_the_rest_still_stands(story: Story) -> None:
    """A quota that Kubernetes does not accept: QuotaReady says why, rights and limits are there all the same."""
    await story.begin()
    name = await story.environment(resourceQuota={"no such thing/cpu": "4"})
    found = await story.reason(name, "QuotaReady", "INVALID_REQUEST")
    assert "no such thing" in found["message"]
    await story.reason(name, "RightsReady", "AsWanted")
    assert (await story.conditions(name))["Ready"]["status"] == "False"


async def test_without_the_tenants_policy_object_isolation_is_not_guessed(story: Story) -> None:
    """Its absence is said; it neither opens nor shuts anything."""
    name = await story.environment()
    await story.reason(name, "NetworkPolicyReady", "TenantNetworkPolicyMissing")
    await story.begin(isolated=True)
    await story.ready(name)
    await story.kube.delete(TENANT_NETWORK_POLICIES, story.tenant)
    await story.reason(name, "NetworkPolicyReady", "TenantNetworkPolicyMissing")
    await story.kube.get(NETWORK_POLICIES, "default", name)


async def test_events_tell_what_was_done(story: Story) -> None:
    """`kubectl describe` shows it."""
    await story.begin()
    name = await story.environment()
    await story.ready(name)

    async def told() -> Any:
        listed = story.kube.list(EVENTS, "default", field_selector=f"involvedObject.name={name}")
        messages = {event["message"] async for event in listed}
        return {f"Created Namespace {name}", "Created ResourceQuota default", "Created RoleBinding gems:operator"} <= messages

    await story.wait(told, within=5)


async def test_a_reconciled_environment_is_left_in_peace(story: Story) -> None:
    """A run on what is as wanted writes nothing: resource versions stay."""
    await story.begin()
    name = await story.environment()
    before = await story.ready(name)
    versions = [(await story.kube.get(r, "default", name))["metadata"]["resourceVersion"] for r in (RESOURCE_QUOTAS, LIMIT_RANGES)]
    await story.kube.patch(NAMESPACES, name, {"metadata": {"annotations": {"poke": "1"}}})
    await story.kube.patch(TENANTS, story.tenant, {"metadata": {"annotations": {"poke": "1"}}})
    other = await story.environment("other")
    await story.ready(other)
    after = await story.kube.get(ENVIRONMENTS, name)
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert versions == [(await story.kube.get(r, "default", name))["metadata"]["resourceVersion"] for r in (RESOURCE_QUOTAS, LIMIT_RANGES)]


@pytest.mark.parametrize("adopt", [False, True])
async def test_an_existing_namespace_is_taken_over_only_on_request(story: Story, *, adopt: bool) -> None:
    """Without the confirm field it stays untouched; with it, it is marked with the environment's uid and keeps what it had."""
    name = story.name("dev")
    made = await story.kube.create(NAMESPACES, {"metadata": {"name": name, "labels": {"theirs": "kept"}}})
    await story.begin()
    await story.environment(adoptNamespace=adopt)
    if not adopt:
        await story.reason(name, "NamespaceReady", "NamespaceExists")
        found = await story.kube.get(NAMESPACES, name)
        assert found["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
        with pytest.raises(NotFound):
            await story.kube.get(RESOURCE_QUOTAS, "default", name)
        return
    await story.ready(name)
    found = await story.kube.get(NAMESPACES, name)
    assert found["metadata"]["labels"]["theirs"] == "kept"
    assert found["metadata"]["annotations"]["gems.kubegems.io/environment-uid"] == f"row-{name}"


async def test_another_tenants_namespace_is_never_taken(story: Story) -> None:
    """Not even with adoptNamespace: the reason says whose it is, and nothing changes."""
    name = story.name("dev")
    labels = {"gems.kubegems.io/tenant": "globex"}
    made = await story.kube.create(NAMESPACES, {"metadata": {"name": name, "labels": labels}})
    await story.begin()
    await story.environment(adoptNamespace=True)
    found = await story.reason(name, "NamespaceReady", "NamespaceTaken")
    assert "globex" in found["message"]
    assert (await story.conditions(name))["Ready"]["status"] == "False"
    assert (await story.kube.get(NAMESPACES, name))["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_ready_means_that_members_can_work_through_the_agent(story: Story, cluster: Any) -> None:
    """The agent's own account, acting as an operator and as a reader: their rights here, none elsewhere, no forged group."""
    await story.begin()
    name = await story.environment()
    await story.ready(name)
    path = f"{story.tenant}/shop/dev"
    operator = Principal("gems:user:dev", "uid-1", (f"gems:environment:{path}:operator",), {"gems.kubegems.io/session": ("s1",)})
    reader = Principal("gems:user:eve", "uid-2", (f"gems:environment:{path}:reader",))
    async with await KubeClient.from_kubeconfig(await cluster.service_account_kubeconfig("gems-agent")) as agent:
        await agent.create(SECRETS, {"metadata": {"name": "s"}, "stringData": {"a": "b"}}, name, impersonate=operator)
        await agent.page(PODS, name, impersonate=reader)
        for who, resource, namespace in ((reader, SECRETS, name), (operator, PODS, "default"), (operator, NODES, None)):
            with pytest.raises(PermissionDenied, match=f"gems:user:{'eve' if who is reader else 'dev'}"):
                await agent.page(resource, namespace, impersonate=who)
        with pytest.raises(PermissionDenied, match="gems-agent"):
            await agent.page(PODS, name, impersonate=Principal("gems:user:dev", groups=("gems:tenant:nobody:admin",)))
        with pytest.raises(PermissionDenied, match="gems-agent"):
            await agent.page(SECRETS, name)
