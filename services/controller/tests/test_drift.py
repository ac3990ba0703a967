"""Drift: what must be written, and what only looks different."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from services.controller import domain, drift, wanted
from services.controller.tests import objects

ENV = domain.environment(
    objects.environment(
        resourceQuota={"limits.cpu": "4", "limits.memory": "8Gi", "limits.storage": "1Gi"},
        limitRange=[{"type": "Container", "default": {"cpu": "500m", "memory": "512Mi"}, "defaultRequest": {"cpu": "100m"}}],
    )
)


def quota() -> dict[str, Any]:
    found = wanted.resource_quota(ENV)
    assert found is not None
    return found


def test_what_the_server_makes_of_our_own_write_is_no_drift() -> None:
    """Other spellings of a quantity, the server's defaults, more labels: nothing to write."""
    have = copy.deepcopy(quota())
    have["spec"]["hard"] = {"limits.cpu": "4000m", "limits.memory": "8192Mi"}
    have["metadata"]["labels"]["other"] = "x"
    assert not drift.drifted(quota(), have)
    limits = wanted.limit_range(ENV)
    assert limits is not None
    have = copy.deepcopy(limits)
    have["spec"]["limits"][0]["defaultRequest"] = {"cpu": "100m", "memory": "512Mi"}
    assert not drift.drifted(limits, have)


@pytest.mark.parametrize(
    "change",
    [
        lambda have: have["spec"]["hard"].update({"limits.cpu": "40"}),
        lambda have: have["spec"]["hard"].update({"pods": "1"}),
        lambda have: have["spec"].update({"scopes": ["BestEffort"]}),
        lambda have: have["metadata"]["labels"].pop(domain.TENANT),
        lambda have: have["metadata"]["labels"].update({domain.TENANT: "globex"}),
        lambda have: have["metadata"].pop("labels"),
    ],
)
def test_every_edit_of_ours_is_drift_and_is_undone(change: Any) -> None:
    """More, less or other than wanted: the overlay brings it back, past what others added."""
    have = copy.deepcopy(quota())
    have["metadata"] |= {"resourceVersion": "5", "annotations": {"theirs": "kept"}}
    change(have)
    assert drift.drifted(quota(), have)
    mended = drift.overlaid(quota(), have)
    assert not drift.drifted(quota(), mended)
    assert mended["metadata"]["resourceVersion"] == "5"
    assert mended["metadata"]["annotations"] == {"theirs": "kept"}


def test_a_binding_to_another_role_is_told_apart() -> None:
    """It cannot be edited; a changed subject can."""
    want = wanted.role_bindings(ENV)[0]
    other = copy.deepcopy(want)
    other["roleRef"]["name"] = "cluster-admin"
    assert drift.role_changed(want, other)
    other = copy.deepcopy(want)
    other["subjects"].pop()
    assert drift.drifted(want, other)
    assert not drift.role_changed(want, other)


def test_a_quota_resource_that_kubernetes_does_not_know_is_left_out() -> None:
    """`limits.storage` is the tenant's book-keeping; the server would refuse it."""
    assert set(quota()["spec"]["hard"]) == {"limits.cpu", "limits.memory"}


def test_nothing_wanted_is_no_object() -> None:
    """No quota and no limits: none is made."""
    bare = domain.environment(objects.environment())
    assert wanted.resource_quota(bare) is None
    assert wanted.limit_range(bare) is None
