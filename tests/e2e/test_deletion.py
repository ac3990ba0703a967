"""Deletion: what goes, what stays, and what is told meanwhile."""

from __future__ import annotations

import pytest

from tests.e2e.world import World, make_environment
from tests.kit.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
SHOP = "tenants/initech/projects/shop"


@pytest.mark.parametrize(("policy", "namespace_stays"), [("DELETE_NAMESPACE", False), ("DELETE_LABELS", True)])
async def test_the_delete_policy_decides_what_goes(platform: World, policy: str, namespace_stays: bool) -> None:
    """The namespace with all in it, or only what is ours in it; a tenant's own object tells the difference."""
    environment = policy.removeprefix("DELETE_").lower()
    namespace = f"initech-shop-{environment}"
    await make_environment(platform.admin, SHOP, environment, deletePolicy=policy)
    await platform.ready(f"{SHOP}/environments/{environment}")
    cluster = platform.cluster
    (await cluster("-n", namespace, "create", "configmap", "theirs")).ok()
    assert (await platform.admin.delete(f"/{SHOP}/environments/{environment}"))["state"] == "DELETING"

    async def gone() -> bool:
        return (await platform.admin.call("GET", f"/{SHOP}/environments/{environment}")).status == 404

    await eventually(gone, within=30, what=f"environment gone ({policy})")
    left = await cluster("-n", namespace, "get", "configmap", "theirs")
    assert (left.code == 0) is namespace_stays
    if namespace_stays:
        labels = (await cluster.json("get", "namespace", namespace))["metadata"]["labels"]
        assert not [label for label in labels if "kubegems" in label]
        assert (await cluster.json("-n", namespace, "get", "resourcequotas,limitranges,networkpolicies,rolebindings"))["items"] == []


async def test_what_holds_a_deletion_up_is_told(platform: World) -> None:
    """A finalizer on a tenant's object keeps the namespace; the environment says so, and goes when it is gone."""
    await make_environment(platform.admin, SHOP, "stuck")
    await platform.ready(f"{SHOP}/environments/stuck")
    cluster = platform.cluster
    (await cluster("-n", "initech-shop-stuck", "create", "configmap", "held")).ok()
    finalizers = '{"metadata":{"finalizers":["example.com/hold"]}}'
    (await cluster("-n", "initech-shop-stuck", "patch", "configmap", "held", "--type=merge", "-p", finalizers)).ok()
    await platform.admin.delete(f"/{SHOP}/environments/stuck")

    async def told() -> bool:
        shown = await platform.admin.get(f"/{SHOP}/environments/stuck")
        assert shown["state"] == "DELETING"
        return "example.com/hold" in str(shown["conditions"])

    await eventually(told, within=30, what="what holds the deletion up")
    (await cluster("-n", "initech-shop-stuck", "patch", "configmap", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')).ok()

    async def gone() -> bool:
        return (await platform.admin.call("GET", f"/{SHOP}/environments/stuck")).status == 404

    await eventually(gone, within=30, what="environment gone")
