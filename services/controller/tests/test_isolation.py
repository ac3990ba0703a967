"""NetworkPolicies derived from a tenant's switches."""

from __future__ import annotations

from typing import Any

import pytest

from services.controller import domain, isolation
from services.controller.tests import objects

WANTED = domain.environment(objects.environment())


def switches(**spec: Any) -> dict[str, str]:
    return isolation.switches(WANTED, {"spec": {"tenant": "acme", **spec}})


def test_each_switch_narrows_and_others_switches_do_not_matter() -> None:
    """Tenant, project, environment add up with AND; those of other projects and environments say nothing here."""
    assert switches() == {}
    assert switches(tenantIsolated=True) == {domain.TENANT: "acme"}
    assert switches(projectNetworkPolicies=[{"name": "shop"}]) == {domain.TENANT: "acme", domain.PROJECT: "shop"}
    assert switches(environmentNetworkPolicies=[{"project": "shop", "name": "dev"}]) == WANTED.common_labels
    assert switches(tenantIsolated=True, environmentNetworkPolicies=[{"project": "shop", "name": "dev"}]) == WANTED.common_labels
    assert switches(projectNetworkPolicies=[{"name": "x"}], environmentNetworkPolicies=[{"project": "x", "name": "dev"}]) == {}


def test_an_open_environment_has_no_policy() -> None:
    """No switch, no policy."""
    assert isolation.policy_spec({}, ["10.0.0.0/24"]) is None


def test_peers_are_the_same_labels_plugins_and_the_outside() -> None:
    """Ingress only, from three kinds of peers."""
    spec = isolation.policy_spec({domain.TENANT: "acme"}, ["10.244.0.0/24", "fd00::/64"])
    assert spec is not None
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"][0]["from"] == [
        {"namespaceSelector": {"matchExpressions": [{"key": domain.TENANT, "operator": "In", "values": ["acme"]}]}},
        {"namespaceSelector": {"matchExpressions": [{"key": domain.PLUGINS, "operator": "Exists"}]}},
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/24"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fd00::/64"]}},
    ]


def test_neighbouring_ranges_become_one() -> None:
    """A thousand nodes do not make a thousand exceptions."""
    blocks = isolation.outside([f"10.244.{n}.0/24" for n in range(256)])
    assert blocks[0] == {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}}
    assert blocks[1] == {"ipBlock": {"cidr": "::/0"}}


def test_without_pod_addresses_nothing_counts_as_outside() -> None:
    """A block without exceptions would let every pod in, which is no isolation."""
    spec = isolation.policy_spec({domain.TENANT: "acme"}, [])
    assert spec is not None
    assert not any("ipBlock" in peer for peer in spec["ingress"][0]["from"])


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/80"]}, ("10.0.0.0/24", "fd00::/80")),
        ({"podCIDR": "10.0.0.0/24"}, ("10.0.0.0/24",)),
        ({}, ()),
        ({"podCIDR": "nonsense"}, ()),
    ],
)
def test_pod_ranges_come_from_nodes(spec: dict[str, Any], found: tuple[str, ...]) -> None:
    """Both fields, each range once, and no nonsense."""
    assert isolation.node_cidrs([{"metadata": {"name": "n"}, "spec": spec}]) == found
