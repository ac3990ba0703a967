"""The join manifest: what it holds, what can be left out, and what it must never hold."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import yaml

from libs.kube import manifest
from libs.kube.manifest import Workloads

PODS = Workloads(image="hub/kubegems:1", token="id.secret", ca_hash="a" * 64, enrolment_address="hub:8446", hub_ports=(8446, 8447))
_NASTY = "x\"\n---\nkind: ClusterRoleBinding\n# ${namespace} {{ .Values.image }} '*&! \u2028"


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


def test_without_an_image_there_are_no_workloads() -> None:
    """Nothing that runs and no secret, and the text says how agent and controller run then."""
    assert not {kind for kind, _ in kinds()} & {"Deployment", "NetworkPolicy", "Secret"}
    assert "agent_image" in manifest.render().partition("apiVersion")[0]


def test_workloads_come_last_and_take_nothing_away() -> None:
    """All that is there without them stays as it is; the Secret is there before the pod that mounts it."""
    bare, whole = kinds(), kinds(workloads=PODS)
    assert list(whole)[: len(bare)] == list(bare)
    assert all(whole[key] == bare[key] for key in bare)
    assert list(whole)[len(bare) :] == [
        ("Secret", "gems-agent-join"), ("Deployment", "gems-agent"), ("Deployment", "gems-controller"),
        ("NetworkPolicy", "kubegems"), ("NetworkPolicy", "gems-agent"),
    ]  # fmt: skip


def test_the_token_stands_in_the_mounted_secret_only() -> None:
    """Neither in a variable nor in a comment nor where the object is printed; no role reads that Secret over the API."""
    text, found = manifest.render(workloads=PODS), kinds(workloads=PODS)
    encoded = base64.b64encode(PODS.token.encode()).decode()
    assert (PODS.token in text, text.count(encoded)) == (False, 1)
    assert found["Secret", "gems-agent-join"]["data"] == {"token": encoded}
    assert PODS.token not in repr(PODS)
    pod = found["Deployment", "gems-agent"]["spec"]["template"]["spec"]
    (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert (secret["secretName"], secret["optional"]) == ("gems-agent-join", True)
    assert not any("gems-agent-join" in rule.get("resourceNames", ()) for one in found.values() for rule in one.get("rules") or ())


def test_a_value_stays_a_value() -> None:
    """Image, addresses, hash and token with YAML, placeholders and templates in them come out as they went in."""
    nasty = replace(PODS, image=_NASTY, token=_NASTY, ca_hash=_NASTY, enrolment_address=_NASTY, edge_url=_NASTY)
    found = kinds(workloads=nasty)
    assert set(found) == set(kinds(workloads=PODS))
    (container,) = found["Deployment", "gems-agent"]["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert container["image"] == _NASTY
    for name in ("CA_HASH", "ENROLMENT_ADDRESS", "EDGE_URL"):
        assert variables[f"KUBEGEMS_AGENT_{name}"] == _NASTY
    assert base64.b64decode(found["Secret", "gems-agent-join"]["data"]["token"]).decode() == _NASTY


def test_pods_connect_to_dns_api_server_and_hub_only() -> None:
    """Nobody connects to them; the hub's ports are the agent's alone; each pod is under a policy for both directions."""
    found = kinds(workloads=PODS)
    both, agent = (found["NetworkPolicy", name]["spec"] for name in ("kubegems", "gems-agent"))
    assert (both["policyTypes"], "ingress" in both, agent["policyTypes"]) == (["Ingress", "Egress"], False, ["Egress"])
    assert [_ports(rule) for rule in both["egress"]] == [{("UDP", 53), ("TCP", 53)}, {("TCP", 443), ("TCP", 6443)}]
    assert [_ports(rule) for rule in agent["egress"]] == [{("TCP", 8446), ("TCP", 8447)}]
    for name, policies in (("gems-agent", [both, agent]), ("gems-controller", [both])):
        labels = found["Deployment", name]["spec"]["template"]["metadata"]["labels"].items()
        assert [one for one in (both, agent) if one["podSelector"]["matchLabels"].items() <= labels] == policies


def _ports(rule: dict[str, Any]) -> set[tuple[str, int]]:
    assert set(rule) == {"ports"}
    return {(port["protocol"], port["port"]) for port in rule["ports"]}
