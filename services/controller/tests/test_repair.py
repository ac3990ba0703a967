"""Drift in a real cluster is repaired within five seconds, whatever it was."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.faults import AlreadyExists, NotFound
from libs.kube import KubeClient, Resource
from libs.kube.resources import (
    CLUSTER_ROLES,
    LIMIT_RANGES,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    RESOURCE_QUOTAS,
    ROLE_BINDINGS,
    TENANT_NETWORK_POLICIES,
)
from services.controller.domain import TENANT
from services.controller.tests.conftest import QUOTA, Story

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("controller")]
WITHIN = 5
RBAC = "rbac.authorization.k8s.io"


@pytest.fixture(scope="module")
async def place(kube: KubeClient, eventually: Any) -> AsyncIterator[Story]:
    """A tenant with one isolated environment that is ready; every test leaves it as it was."""
    found = Story(kube, f"t{secrets.token_hex(4)}", eventually)
    await found.begin(isolated=True)
    await found.environment()
    await found.ready(found.name("dev"))
    yield found
    await found.end()


async def repaired(place: Story, resource: Resource, name: str, before: dict[str, Any]) -> dict[str, Any]:
    """Waits until the object says again what it said."""

    async def check() -> dict[str, Any]:
        try:
            found = await place.kube.get(resource, name, place.name("dev"))
        except NotFound as error:
            raise AssertionError("still missing") from error
        parts = [part for part in before if part not in ("metadata", "status", "kind", "apiVersion")]
        assert {part: found.get(part) for part in parts} == {part: before[part] for part in parts}
        assert before["metadata"]["labels"].items() <= found["metadata"].get("labels", {}).items()
        return found

    return dict(await place.wait(check, within=WITHIN, what=f"repair of {resource.kind}"))


MADE = [
    (RESOURCE_QUOTAS, "default"),
    (LIMIT_RANGES, "default"),
    (NETWORK_POLICIES, "default"),
    (ROLE_BINDINGS, "gems:operator"),
    (ROLE_BINDINGS, "gems:reader"),
]


@pytest.mark.parametrize(("resource", "name"), MADE)
async def test_a_deleted_object_comes_back(place: Story, resource: Resource, name: str) -> None:
    """Made again, with a uid of its own."""
    before = await place.kube.get(resource, name, place.name("dev"))
    await place.kube.delete(resource, name, place.name("dev"))
    after = await repaired(place, resource, name, before)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


@pytest.mark.parametrize(
    ("resource", "name", "patch"),
    [
        (RESOURCE_QUOTAS, "default", {"spec": {"hard": {"limits.cpu": "400"}}}),
        (RESOURCE_QUOTAS, "default", {"spec": {"hard": {"pods": "1"}}}),
        (RESOURCE_QUOTAS, "default", {"spec": {"hard": {"limits.cpu": None}}}),
        (RESOURCE_QUOTAS, "default", {"metadata": {"labels": {TENANT: None}}}),
        (LIMIT_RANGES, "default", {"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}}),
        (LIMIT_RANGES, "default", {"metadata": {"labels": {TENANT: "globex"}}}),
        (NETWORK_POLICIES, "default", {"spec": {"ingress": [{}]}}),
        (NETWORK_POLICIES, "default", {"metadata": {"labels": None}}),
        (ROLE_BINDINGS, "gems:reader", {"subjects": [{"kind": "User", "name": "mallory", "apiGroup": RBAC}]}),
        (ROLE_BINDINGS, "gems:operator", {"subjects": None}),
    ],
)
async def test_an_edited_object_is_corrected(place: Story, resource: Resource, name: str, patch: dict[str, Any]) -> None:
    """More, less, other, and labels."""
    before = await place.kube.get(resource, name, place.name("dev"))
    await place.kube.patch(resource, name, patch, place.name("dev"))
    after = await repaired(place, resource, name, before)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_a_binding_to_another_role_is_made_anew(place: Story) -> None:
    """roleRef cannot be edited, so somebody replaced the binding; it is replaced back."""
    namespace = place.name("dev")
    before = await place.kube.get(ROLE_BINDINGS, "gems:reader", namespace)
    await place.kube.delete(ROLE_BINDINGS, "gems:reader", namespace)
    forged = {
        "metadata": {"name": "gems:reader", "namespace": namespace, "labels": before["metadata"]["labels"]},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"},
        "subjects": before["subjects"],
    }

    async def forge() -> bool:
        """The controller may be faster; then its binding must go first."""
        try:
            await place.kube.create(ROLE_BINDINGS, forged, namespace)
        except AlreadyExists:
            await place.kube.delete(ROLE_BINDINGS, "gems:reader", namespace)
            return False
        return True

    await place.wait(forge, within=WITHIN, every=0.0)
    await repaired(place, ROLE_BINDINGS, "gems:reader", before)


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {TENANT: None}},
        {"labels": {TENANT: "globex", "gems.kubegems.io/project": "x"}},
        {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
        {"annotations": {"gems.kubegems.io/environment-uid": None}},
        {
            "labels": {TENANT: None, "gems.kubegems.io/project": None, "gems.kubegems.io/environment": None},
            "annotations": {"gems.kubegems.io/environment-uid": None, "gems.kubegems.io/environment-name": None},
        },
    ],
)
async def test_the_namespaces_marks_come_back(place: Story, metadata: dict[str, Any]) -> None:
    """Labels, Pod Security level and annotations, one by one or all at once."""
    namespace = place.name("dev")
    before = (await place.kube.get(NAMESPACES, namespace))["metadata"]
    await place.kube.patch(NAMESPACES, namespace, {"metadata": metadata})

    async def check() -> None:
        after = (await place.kube.get(NAMESPACES, namespace))["metadata"]
        assert (after["labels"], after.get("annotations")) == (before["labels"], before["annotations"])

    await place.wait(check, within=WITHIN, what="repair of Namespace")


async def test_a_deleted_namespace_is_made_again(story: Story) -> None:
    """With everything in it, under the same name."""
    await story.begin()
    name = await story.environment()
    before = await story.ready(name)
    await story.kube.delete(NAMESPACES, name)

    async def check() -> None:
        found = await story.kube.get(RESOURCE_QUOTAS, "default", name)
        assert found["spec"]["hard"] == QUOTA
        after = (await story.kube.get(NAMESPACES, name))["metadata"]
        assert after["uid"] != before["status"]["namespaceUid"]

    async def once() -> bool:
        try:
            await check()
        except NotFound:
            return False
        return True

    await story.wait(once, within=30, what="namespace made again")
    await story.ready(name, within=10)


async def test_isolation_follows_its_switches(story: Story) -> None:
    """Off: no policy; environment: three labels; tenant: one."""
    await story.begin()
    name = await story.environment()
    await story.ready(name)
    with pytest.raises(NotFound):
        await story.kube.get(NETWORK_POLICIES, "default", name)

    async def keys() -> list[str]:
        found = await story.kube.get(NETWORK_POLICIES, "default", name)
        return [e["key"].rpartition("/")[2] for e in found["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchExpressions"]]

    async def switched(expected: list[str], **spec: Any) -> None:
        await story.put(TENANT_NETWORK_POLICIES, story.tenant, {"tenant": story.tenant, **spec})

        async def check() -> bool:
            try:
                return await keys() == expected
            except NotFound:
                return not expected

        await story.wait(check, within=WITHIN, what=f"isolation {expected}")

    await switched(["tenant", "project", "environment"], environmentNetworkPolicies=[{"project": "shop", "name": "dev"}])
    await switched(["tenant", "project"], projectNetworkPolicies=[{"name": "shop"}])
    await switched(["tenant"], tenantIsolated=True)
    await switched([], tenantIsolated=False, environmentNetworkPolicies=[{"project": "shop", "name": "other"}])


async def test_a_new_node_becomes_an_exception_from_outside(place: Story) -> None:
    """Its pods are inside the cluster; when it goes, so does the exception."""
    name, cidr = f"node-{secrets.token_hex(4)}", "10.98.7.0/24"

    async def excepted() -> list[str]:
        found = await place.kube.get(NETWORK_POLICIES, "default", place.name("dev"))
        return [c for peer in found["spec"]["ingress"][0]["from"] for c in peer.get("ipBlock", {}).get("except", ())]

    async def check(*, present: bool) -> bool:
        return (cidr in await excepted()) is present

    await place.kube.create(NODES, {"metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}})
    try:
        await place.wait(lambda: check(present=True), within=WITHIN, what="node added")
    finally:
        await place.kube.delete(NODES, name)
    await place.wait(lambda: check(present=False), within=WITHIN, what="node removed")


async def test_the_list_of_groups_is_repaired_and_follows_the_environments(place: Story, story: Story, kube: KubeClient) -> None:
    """A smuggled group goes, a removed one comes back; an environment's groups stay a while after it went, then go."""

    async def groups() -> set[str]:
        role = await kube.get(CLUSTER_ROLES, "gems:impersonated")
        return {name for rule in role["rules"] for name in rule.get("resourceNames", ())}

    ours = f"gems:environment:{place.tenant}/shop/dev:operator"
    assert ours in await groups()
    role = await kube.get(CLUSTER_ROLES, "gems:impersonated")
    for rule in role["rules"]:
        if rule["resources"] == ["groups"]:
            rule["resourceNames"] = ["system:masters", "gems:platform:admin"]
    await kube.replace(CLUSTER_ROLES, role)

    async def mended() -> bool:
        return ours in (found := await groups()) and "system:masters" not in found

    await place.wait(mended, within=WITHIN, what="repair of ClusterRole")
    await story.begin()
    name = await story.environment()
    await story.ready(name)
    theirs = f"gems:environment:{story.tenant}/shop/dev:operator"
    assert theirs in await groups()
    await story.tombstone(name)
    await story.absent(NAMESPACES, name, within=30)
    assert theirs in await groups()

    async def gone() -> bool:
        return theirs not in await groups()

    await story.wait(gone, within=10, what="group gone after lingering")
