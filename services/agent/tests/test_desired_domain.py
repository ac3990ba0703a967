"""The rules of desired state, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from services.agent.desired import domain
from services.agent.desired.domain import Buried, DesiredSet, Wanted

HUB = "hub-1"


def wanted(**changes: Any) -> Wanted:
    manifest = {"labels": {"l": "1"}, "annotations": {}, "spec": {"quota": {"cpu": "1"}, "list": [{"a": 1}]}}
    return Wanted(**{"kind": "Tenant", "name": "acme", "uid": "u1", "generation": 5, "manifest": manifest, "traceparent": "t5", **changes})


def live_of(item: Wanted, **spec: Any) -> dict[str, Any]:
    """What the cluster holds after applying an item."""
    body = domain.body(item, None, HUB, item.traceparent)
    assert body is not None
    return {"metadata": {**body["metadata"], "uid": "k8s"}, "spec": {**body["spec"], "defaulted": True, **spec}}


@pytest.mark.parametrize(
    ("fetched", "accepted", "refused_confirmed", "taken"),
    [
        (DesiredSet(HUB, 10, ""), "", None, True),
        (DesiredSet(HUB, 11, ""), "", None, True),
        (DesiredSet(HUB, 9, ""), "", None, False),
        (DesiredSet("hub-2", 99, ""), "", None, False),
        (DesiredSet("", 99, ""), "", None, False),
        (DesiredSet("hub-2", 1, ""), "hub-2", None, True),
        (DesiredSet(HUB, 9, "", confirmed=9), "", None, False),
        (DesiredSet(HUB, 9, "", confirmed=9), "", 9, False),
        (DesiredSet(HUB, 9, "", confirmed=9), "", 2, True),
    ],
)
def test_whose_sets_are_taken(fetched: DesiredSet, accepted: str, refused_confirmed: int | None, *, taken: bool) -> None:
    """The known hub's same or later generation; a lower one only when confirmed after it was refused; another hub only by an operator."""
    found = domain.refusal(DesiredSet(HUB, 10, ""), fetched, accepted_hub_uid=accepted, refused_confirmed=refused_confirmed)
    assert (not found) is taken


def test_the_first_set_is_taken() -> None:
    """A new agent follows whoever it joined."""
    assert domain.refusal(None, DesiredSet(HUB, 3, ""), accepted_hub_uid="", refused_confirmed=None) == ""


@pytest.mark.parametrize(
    ("removals", "existing", "confirmed", "held"),
    [(3, 3, 0, False), (4, 4, 0, True), (4, 20, 0, False), (5, 20, 0, True), (20, 100, 0, False), (21, 100, 0, True), (21, 100, 7, False)],
)
def test_many_removals_wait(removals: int, existing: int, confirmed: int, *, held: bool) -> None:
    """More than the greater of 3 and 20 % stop until a human confirms their generation."""
    found = domain.brake([Buried("Tenant", f"t{i}", "u", 7) for i in range(removals)], existing, confirmed)
    assert bool(found) is held
    assert not held or "generation 7" in found


def test_what_is_as_wanted_is_not_written() -> None:
    """Defaults that the server added do not count as a difference."""
    assert domain.body(wanted(), live_of(wanted()), HUB, "now") is None


@pytest.mark.parametrize("spec", [{"quota": {"cpu": "2"}}, {"quota": {}}, {"list": [{"a": 1}, {"a": 2}]}, {"list": [{"a": 2}]}], ids=str)
def test_drift_is_put_right_without_a_trace(spec: dict[str, Any]) -> None:
    """A spec that others changed is applied again; that is not part of the trace that made it."""
    body = domain.body(wanted(), live_of(wanted(), **spec), HUB, "now")
    assert body is not None
    assert body["spec"] == wanted().manifest["spec"]
    assert domain.TRACEPARENT not in body["metadata"]["annotations"]


def test_a_changed_spec_carries_its_trace() -> None:
    """The hub's change of the spec comes with the trace, also when a field only went away."""
    new = wanted(generation=6, manifest={"labels": {}, "annotations": {}, "spec": {"list": [{"a": 1}]}})
    body = domain.body(new, live_of(wanted()), HUB, "now")
    assert body is not None
    assert body["metadata"]["annotations"][domain.TRACEPARENT] == "now"


def test_a_changed_label_keeps_the_trace_that_is_there() -> None:
    """No spec, no new trace: the old annotation stays as it was."""
    new = wanted(generation=6, manifest={**wanted().manifest, "labels": {"l": "2"}})
    body = domain.body(new, live_of(wanted()), HUB, "now")
    assert body is not None
    assert body["metadata"]["annotations"][domain.TRACEPARENT] == "t5"
    assert body["metadata"]["annotations"][domain.GENERATION] == "6"


@pytest.mark.parametrize(
    ("annotations", "metadata", "reason"),
    [
        ({}, {}, "NOT_OURS"),
        ({domain.HUB_UID: "hub-2", domain.UID: "u1"}, {}, "OTHER_HUB"),
        ({domain.HUB_UID: HUB, domain.UID: "u0"}, {}, "EARLIER_OBJECT"),
        ({domain.HUB_UID: HUB, domain.UID: "u1"}, {"deletionTimestamp": "x"}, "BEING_DELETED"),
        ({domain.HUB_UID: HUB, domain.UID: "u1"}, {}, None),
    ],
)
def test_what_may_be_touched(annotations: dict[str, str], metadata: dict[str, str], reason: str | None) -> None:
    """Only the object of this hub and this row."""
    found = domain.foreign({"metadata": {"annotations": annotations, **metadata}}, wanted(), HUB)
    assert (found[0] if found else None) == reason
