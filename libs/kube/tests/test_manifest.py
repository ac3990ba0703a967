"""The join manifest: what it holds, what can be left out, and what it must never hold."""

from __future__ import annotations

from typing import Any

import yaml

from libs.kube import manifest


def kinds(**options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(manifest.render(**options))}


def test_the_whole_manifest_is_there_in_order() -> None:
    """CRDs before all, the namespace before what lives in it."""
    found = list(kinds())
    assert [name for kind, name in found if kind == "CustomResourceDefinition"] == [
        f"{plural}.gems.kubegems.io" for plural in ("environments", "tenantnetworkpolicies", "tenantresourcequotas", "tenants")
    ]
    assert found.index(("Namespace", "kubegems-system")) == 4
    roles = {name for kind, name in found if kind == "ClusterRole" and not name.startswith("gems:part:")}
    assert roles == {
        "gems:operator", "gems:reader", "gems:auditor", "gems:inventory", "gems:observer",
        "gems:desired-state", "gems:controller", "gems:agent", "gems:impersonated",
    }  # fmt: skip


def test_no_rule_uses_a_wildcard() -> None:
    """Not in groups, resources or verbs: RBAC cannot say "all but secrets"."""
    for (kind, name), found in kinds().items():
        for rule in found.get("rules") or ():
            text = [*rule.get("apiGroups", ()), *rule.get("resources", ()), *rule["verbs"], *rule.get("nonResourceURLs", ())]
            assert not any("*" in part for part in text), (kind, name, rule)


def test_only_the_operator_reads_secrets_and_only_the_controller_escalates() -> None:
    """Across all roles; the agent's own secret is named and in its own namespace."""
    for (kind, name), found in kinds().items():
        for rule in found.get("rules") or ():
            if "secrets" in rule.get("resources", ()) and set(rule["verbs"]) != {"create"} and name != "gems:part:workloads-edit":
                assert (name, rule["resourceNames"]) == ("gems:agent", ["gems-agent"]), (kind, name)
            if {"bind", "escalate"} & set(rule["verbs"]):
                assert name == "gems:controller"
                assert set(rule["resourceNames"]) <= {"gems:operator", "gems:reader", "gems:impersonated"}


def test_cluster_admin_can_be_left_out() -> None:
    """The opt-out takes away that binding and nothing else."""
    whole, less = kinds(), kinds(without_cluster_admin=True)
    assert set(whole) - set(less) == {("ClusterRoleBinding", "gems:platform:admin")}
    assert not any(
        found["roleRef"]["name"] == "cluster-admin" for (kind, _), found in less.items() if kind in ("ClusterRoleBinding", "RoleBinding")
    )


def test_old_servers_get_what_they_understand() -> None:
    """No admission policy below 1.30, no CEL in CRDs below 1.23; the rest is the same."""
    policies = {kind for kind, _ in kinds()} - {kind for kind, _ in kinds(kubernetes_version=(1, 29))}
    assert policies == {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert "x-kubernetes-validations" in manifest.render(kubernetes_version=(1, 23))
    assert "x-kubernetes-validations" not in manifest.render(kubernetes_version=(1, 22))


def test_another_namespace_is_used_throughout() -> None:
    """Nothing keeps to the default one."""
    text = manifest.render(namespace="platform")
    assert "kubegems-system" not in text
    assert "${" not in text
