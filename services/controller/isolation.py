"""Who may connect to an environment: NetworkPolicy specs from a tenant's isolation switches. Pure.

Ingress only, never egress. Each switch that is on narrows the namespaces that may connect (tenant AND project AND
environment); plugins' namespaces and traffic from outside the cluster stay welcome. Outside is every address that is no
pod's, which only the nodes' pod CIDRs can tell: without any, nothing is taken for outside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from services.controller.domain import ENVIRONMENT, PLUGINS, PROJECT, TENANT, Environment, Object

_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def switches(wanted: Environment, policy: Object) -> dict[str, str]:
    """The labels that a namespace must carry to connect; empty when the environment is open."""
    spec = policy["spec"]
    found = {}
    if spec.get("tenantIsolated"):
        found[TENANT] = wanted.tenant
    if any(item["name"] == wanted.project for item in spec.get("projectNetworkPolicies") or ()):
        found |= {TENANT: wanted.tenant, PROJECT: wanted.project}
    if any((i["project"], i["name"]) == (wanted.project, wanted.environment) for i in spec.get("environmentNetworkPolicies") or ()):
        found |= {TENANT: wanted.tenant, PROJECT: wanted.project, ENVIRONMENT: wanted.environment}
    return found


def policy_spec(required: dict[str, str], pod_cidrs: Iterable[str]) -> Object | None:
    """The NetworkPolicy's spec; None when nothing is required of who connects."""
    if not required:
        return None
    peers: list[Any] = [
        {"namespaceSelector": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]} for key, value in required.items()]}},
        {"namespaceSelector": {"matchExpressions": [{"key": PLUGINS, "operator": "Exists"}]}},
        *outside(pod_cidrs),
    ]
    return {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]}


def outside(pod_cidrs: Iterable[str]) -> list[Object]:
    """Address blocks of what is outside the cluster, both families; none when no pod's addresses are known."""
    found: dict[int, set[Any]] = {4: set(), 6: set()}
    for cidr in pod_cidrs:
        network = ipaddress.ip_network(cidr, strict=False)
        found[network.version].add(network)
    if not any(found.values()):
        return []
    blocks = []
    for version, networks in found.items():
        block: Object = {"cidr": _EVERYWHERE[version]}
        if networks:
            block["except"] = [str(network) for network in ipaddress.collapse_addresses(networks)]
        blocks.append({"ipBlock": block})
    return blocks


def node_cidrs(nodes: Iterable[Object]) -> tuple[str, ...]:
    """Pod CIDRs of nodes, sorted; what is no CIDR is left out."""
    found = set()
    for node in nodes:
        spec = node.get("spec") or {}
        found |= {cidr for cidr in (*(spec.get("podCIDRs") or ()), spec.get("podCIDR")) if cidr and _is_cidr(cidr)}
    return tuple(sorted(found))


def _is_cidr(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True
