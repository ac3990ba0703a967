"""The CRDs on a real API server: what they refuse, and that a good object passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.faults import Invalid
from libs.kube import KubeClient, Resource
from libs.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, ENVIRONMENTS, OURS, TENANT_NETWORK_POLICIES, TENANT_RESOURCE_QUOTAS, TENANTS

pytestmark = pytest.mark.cluster
NAME = "crdtest-shop-dev"
GOOD: dict[str, Any] = {"tenant": "crdtest", "project": "shop", "environment": "dev", "namespace": NAME}


async def create(kube: KubeClient, resource: Resource, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}, "spec": spec}
    return await kube.apply(resource, body, field_manager="test", dry_run=True)


@pytest.fixture(scope="module")
async def stored(kube: KubeClient) -> AsyncIterator[dict[str, Any]]:
    """A stored environment, to be changed by dry runs."""
    yield await kube.create(ENVIRONMENTS, {"metadata": {"name": NAME}, "spec": GOOD})
    await kube.patch(ENVIRONMENTS, NAME, {"metadata": {"finalizers": None}})
    await kube.delete(ENVIRONMENTS, NAME)


async def test_a_good_environment_gets_its_defaults(kube: KubeClient) -> None:
    """The positive control of all refusals below."""
    spec = {**GOOD, "namespace": "crdgood-shop-dev", "resourceQuota": {"limits.cpu": 4}}
    made = await create(kube, ENVIRONMENTS, "crdgood-shop-dev", spec)
    assert made["spec"] == {
        **spec, "adoptNamespace": False, "deletePolicy": "delNamespace", "podSecurity": "baseline",
        "resourceQuotaName": "default", "limitRangeName": "default",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("resource", "name", "spec", "what"),
    [
        (ENVIRONMENTS, "other", GOOD, "named like its namespace"),
        *[
            (ENVIRONMENTS, n, {**GOOD, "namespace": n}, "reserved")
            for n in ("default", "kube-system", "kubegems-system", "kubegems", "gems-x")
        ],
        (ENVIRONMENTS, "x", {**GOOD, "namespace": "x", "podSecurity": "lax"}, "podSecurity"),
        (ENVIRONMENTS, "x", {**GOOD, "namespace": "x", "deletePolicy": "all"}, "deletePolicy"),
        (ENVIRONMENTS, "x", {**GOOD, "namespace": "x", "tenant": "Acme"}, "spec.tenant"),
        (ENVIRONMENTS, "x", {**GOOD, "namespace": "x", "tenant": "a/b"}, "spec.tenant"),
        (ENVIRONMENTS, "x", {**GOOD, "namespace": "x", "resourceQuota": {"limits.cpu": "much"}}, "resourceQuota"),
        (ENVIRONMENTS, "x", {"tenant": "a", "project": "b", "namespace": "x"}, "environment"),
        (TENANTS, "x", {"tenantName": "y"}, "named like its tenant"),
        (TENANTS, "x", {}, "tenantName"),
        (TENANT_NETWORK_POLICIES, "x", {"tenant": "y"}, "named like its tenant"),
        (TENANT_RESOURCE_QUOTAS, "x", {"hard": {"limits.cpu": "1 core"}}, "spec.hard"),
        (TENANT_RESOURCE_QUOTAS, "x", {}, "hard"),
    ],
)
async def test_a_bad_object_is_refused_with_the_field(
    kube: KubeClient, resource: Resource, name: str, spec: dict[str, Any], what: str
) -> None:
    """Names, reserved namespaces, enums, quantities, missing fields."""
    with pytest.raises(Invalid) as caught:
        await create(kube, resource, name, spec)
    assert what in str(caught.value)


@pytest.mark.parametrize("field", ["tenant", "project", "environment", "namespace"])
async def test_where_an_environment_belongs_never_changes(kube: KubeClient, stored: dict[str, Any], field: str) -> None:
    """tenant, project, environment and namespace are immutable."""
    with pytest.raises(Invalid, match="immutable"):
        await kube.patch(ENVIRONMENTS, NAME, {"spec": {field: "other"}})


async def test_what_may_change_changes(kube: KubeClient, stored: dict[str, Any]) -> None:
    """Quota and Pod Security of the same environment can be set."""
    made = await kube.patch(ENVIRONMENTS, NAME, {"spec": {"podSecurity": "restricted", "resourceQuota": {"pods": "3"}}})
    assert made["spec"]["podSecurity"] == "restricted"


async def test_status_is_a_subresource_and_unknown_fields_are_dropped(kube: KubeClient, stored: dict[str, Any]) -> None:
    """Who writes the object cannot write its status with it."""
    made = await kube.patch(ENVIRONMENTS, NAME, {"spec": {"unknown": 1}, "status": {"namespace": "forged"}})
    assert "unknown" not in made["spec"]
    assert "namespace" not in made.get("status", {})


async def test_short_names_and_columns_are_those_of_kubegems(kube: KubeClient) -> None:
    """ten, tquota, tnetpol, tenv."""
    short = {}
    for resource in OURS:
        found = await kube.get(CUSTOM_RESOURCE_DEFINITIONS, f"{resource.plural}.{resource.group}")
        short[resource.kind] = found["spec"]["names"]["shortNames"]
        assert any(c["name"] == "Ready" for c in found["spec"]["versions"][0]["additionalPrinterColumns"])
        assert not any(c["type"] == "NonStructuralSchema" for c in found["status"]["conditions"])
    assert short == {"Tenant": ["ten"], "TenantResourceQuota": ["tquota"], "TenantNetworkPolicy": ["tnetpol"], "Environment": ["tenv"]}
