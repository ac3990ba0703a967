"""The pure rules: namespaces, quotas, limits, progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.kube import quantity
from services.gateway.tenancy.domain import limits, namespaces, progress, quotas
from services.gateway.tenancy.domain.quotas import QuotaExceeded
from services.gateway.tenancy.tests.house import refused

_LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", fullmatch=True)
_AMOUNT = st.sampled_from(["0", "1", "500m", "1500m", "2", "3"])


@given(_LABEL, _LABEL, _LABEL, st.uuids())
def test_candidates_are_valid_namespaces_of_the_tenant(tenant: str, project: str, environment: str, uid: object) -> None:
    """Labels of at most 63 characters that start with the tenant's name, the last with the environment's own hash."""
    found = list(namespaces.candidates(tenant, project, environment, str(uid)))
    assert len(set(found)) == len(found) >= 2
    for name in found:
        assert len(name) <= 63
        assert name.startswith(f"{tenant}-")
        assert name[-1] != "-"


@pytest.mark.parametrize(
    ("namespace", "platform", "ok"),
    [
        ("acme-x", False, True),
        ("acme", False, False),
        ("acmex", False, False),
        ("other-x", False, False),
        ("other-x", True, True),
        ("default", True, False),
        ("kube-system", True, False),
        ("kubegems", True, False),
        ("kubegems-local", True, False),
        ("gems-x", True, False),
    ],
)
def test_who_may_have_which_namespace(namespace: str, platform: bool, ok: bool) -> None:
    """A tenant's own prefix for its people, any but the reserved for a platform admin."""
    assert (namespaces.problem(namespace, "acme", platform=platform) == "") is ok


@given(st.lists(_AMOUNT, max_size=8), _AMOUNT)
def test_what_fits_never_sums_up_to_more(held: list[str], asked: str) -> None:
    """`fit` lets exactly those through whose sum is within the limit."""
    total = sum(map(quantity.parse, [*held, asked]))
    try:
        quotas.fit({"limits.cpu": "4"}, [{"limits.cpu": text} for text in held], {"limits.cpu": asked})
    except QuotaExceeded:
        assert total > 4
    else:
        assert total <= 4


def test_aliases_count_as_one_resource() -> None:
    """`cpu` and `requests.cpu` are the same to Kubernetes, so they share the limit."""
    with refused("QUOTA_EXCEEDED", "1 left"):
        quotas.fit({"requests.cpu": "4"}, [{"cpu": "3"}], {"requests.cpu": "2"})
    assert quotas.complete({"requests.cpu": "4"}, {"cpu": "1"}) == {"cpu": "1"}


def test_what_is_not_limited_is_not_summed() -> None:
    """A resource that the tenant's quota does not name can be had freely."""
    quotas.fit({"limits.cpu": "1"}, [{"pods": "100"}], {"limits.cpu": "1", "pods": "1000"})


@pytest.mark.parametrize(
    "name",
    ["cpu", "limits.memory", "count/deployments.apps", "requests.nvidia.com/gpu", "gold.storageclass.storage.k8s.io/requests.storage"],
)
def test_resources_that_kubernetes_knows_are_taken(name: str) -> None:
    """Standard names and qualified ones."""
    assert quotas.check("q", {name: "1"}) == []


@pytest.mark.parametrize("name", ["cpus", "limits.disk", "Limits.cpu", "a/b/c", ""])
def test_resources_that_no_quota_can_limit_are_refused(name: str) -> None:
    """By their path."""
    assert [v.field for v in quotas.check("q", {name: "1"})] == [f"q[{name}]"]


def test_container_defaults_are_checked() -> None:
    """Only what containers have, not below zero, requests within limits."""
    assert limits.check("l", {"cpu": "1"}, {"cpu": "1000m"}) == []
    assert [v.field for v in limits.check("l", {"cpu": "1"}, {"cpu": "1001m"})] == ["l.default_request[cpu]"]
    assert [v.field for v in limits.check("l", {"pods": "1"}, {"cpu": "-1"})] == ["l.default[pods]", "l.default_request[cpu]"]
    assert limits.items({"default": {"cpu": "1"}, "default_request": {}}) == [{"type": "Container", "default": {"cpu": "1"}}]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"shown_state": "READY"}, None),
        ({"shown_state": "PENDING", "online": False}, ("Applied", "ClusterOffline")),
        ({"shown_state": "PENDING", "confirmation_needed": "5 removals"}, ("Applied", "ConfirmationNeeded")),
        ({"shown_state": "PENDING", "paused": True}, ("Applied", "ClusterPaused")),
        ({"shown_state": "DELETING"}, ("Removed", "WaitingForCluster")),
        ({"shown_state": "DELETING", "paused": True}, ("Removed", "ClusterPaused")),
        ({"shown_state": "DELETING", "reported_state": "REMOVING", "reason": "Finalizer"}, ("Removed", "Finalizer")),
        ({"shown_state": "DEGRADED", "reported_state": "FAILED", "reason": "Forbidden"}, ("Applied", "Forbidden")),
        ({"shown_state": "UNKNOWN", "online": False}, ("ClusterOnline", "ClusterOffline")),
    ],
)
def test_progress_tells_what_is_in_the_way(facts: dict[str, object], expected: tuple[str, str] | None) -> None:
    """One condition of our own, before those that were reported."""
    reported = {"type": "QuotaReady", "status": "True", "reason": "Done", "message": ""}
    env = {
        "cluster": "local", "online": True, "paused": False, "confirmation_needed": "", "reported_state": None, "reason": "", "message": "",
        "conditions": [reported],
    } | facts  # fmt: skip
    found = progress.conditions(env)
    assert found[-1] == reported
    assert [(c["type"], c["reason"]) for c in found[:-1]] == ([expected] if expected else [])
