"""The custom resources (`gems.kubegems.io/v1beta1`) that stand for tenancy in a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from services.gateway.tenancy.domain import limits
from services.gateway.tenancy.domain.rows import Row

TENANT = "Tenant"
QUOTA = "TenantResourceQuota"
NETWORK = "TenantNetworkPolicy"
ENVIRONMENT = "Environment"
_GROUP = "gems.kubegems.io"
_POLICIES = {"DELETE_NAMESPACE": "delNamespace", "DELETE_LABELS": "delLabels"}

Manifest = dict[str, Any]


def tenant(name: str) -> Manifest:
    """The Tenant."""
    return _manifest({"tenantName": name}, tenant=name)


def resource_quota(tenant_: str, hard: Mapping[str, str]) -> Manifest:
    """The TenantResourceQuota."""
    return _manifest({"hard": dict(hard)}, tenant=tenant_)


def network_policy(tenant_: str, *, isolated: bool, projects: Iterable[str], environments: Iterable[tuple[str, str]]) -> Manifest:
    """The TenantNetworkPolicy: which levels are shut off.

    Args:
        tenant_: id of the tenant.
        isolated: whether other tenants are shut out.
        projects: ids of isolated projects.
        environments: (project, environment) of isolated environments.
    """
    spec = {
        "tenant": tenant_,
        "tenantIsolated": isolated,
        "projectNetworkPolicies": [{"name": name} for name in sorted(projects)],
        "environmentNetworkPolicies": [{"project": project, "name": name} for project, name in sorted(environments)],
    }
    return _manifest(spec, tenant=tenant_)


def environment(env: Row) -> Manifest:
    """The Environment, from its row."""
    spec = {
        "tenant": env["tenant"],
        "project": env["project"],
        "environment": env["name"],
        "namespace": env["namespace"],
        "deletePolicy": _POLICIES[env["delete_policy"]],
        "adoptNamespace": env["adopt_namespace"],
        "resourceQuota": env["quota"],
        "resourceQuotaName": "default",
        "limitRange": limits.items(env["limit_range"]),
        "limitRangeName": "default",
        "podSecurity": env["pod_security"].lower(),
    }
    return _manifest(spec, tenant=env["tenant"], project=env["project"], environment=env["name"])


def _manifest(spec: dict[str, Any], **labels: str) -> Manifest:
    return {"labels": {f"{_GROUP}/{key}": value for key, value in labels.items()}, "annotations": {}, "spec": spec}
