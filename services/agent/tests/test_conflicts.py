"""Whose fields the hub overwrites, and what differs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from services.agent.desired import domain
from services.agent.desired.applier import Overwritten
from services.agent.desired.conflicts import FieldConflict, conflicts, differences, text
from services.agent.object_status import tell_overwritten

OURS = "kubegems-hub"


def live(spec: dict[str, Any], *managed: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    metadata = {"name": "acme", "labels": labels or {}, "annotations": {domain.GENERATION: "1"}, "managedFields": list(managed)}
    return {"metadata": metadata, "spec": spec}


def body(spec: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"metadata": {"name": "acme", "labels": labels or {}, "annotations": {domain.GENERATION: "2"}}, "spec": spec}


def managed(manager: str, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"manager": manager, "fieldsV1": {"f:spec": spec}, **more}


def test_only_what_another_manager_set_otherwise_is_a_conflict() -> None:
    """Its equal values, our own, fields we do not set, and status are none."""
    found = live(
        {"quota": {"limits.cpu": "9", "pods": "5"}, "namespace": "x", "extra": 1},
        managed("kubectl-edit", {"f:quota": {"f:limits.cpu": {}, "f:pods": {}}, "f:extra": {}}),
        managed(OURS, {"f:namespace": {}}),
        managed("controller", {"f:namespace": {}}, subresource="status"),
    )
    wanted = body({"quota": {"limits.cpu": "4", "pods": "5"}, "namespace": "y"})
    assert conflicts(found, wanted, OURS) == [FieldConflict("kubectl-edit", ('spec.quota["limits.cpu"]',))]


@pytest.mark.parametrize(
    "fields",
    [{"f:rules": {}}, {"f:rules": {'k:{"name":"a"}': {".": {}, "f:value": {}}}}, {"f:rules": {".": {}, "v:1": {}}}],
    ids=["atomic", "by key", "by value"],
)
def test_a_list_counts_whole(fields: dict[str, Any]) -> None:
    """However its manager owns it."""
    found = live({"rules": [{"name": "a", "value": 1}]}, managed("helm", fields))
    assert conflicts(found, body({"rules": [{"name": "a", "value": 2}]}), OURS) == [FieldConflict("helm", ("spec.rules",))]


def test_labels_count_and_our_own_marks_do_not() -> None:
    """A label is named with quotes when it holds dots or slashes."""
    entry = {"manager": "a", "fieldsV1": {"f:metadata": {"f:labels": {"f:gems.io/t": {}}, "f:annotations": {f"f:{domain.GENERATION}": {}}}}}
    found = live({}, entry, labels={"gems.io/t": "b"})
    wanted = body({}, {"gems.io/t": "a", "new": "1"})
    assert conflicts(found, wanted, OURS) == [FieldConflict("a", ('metadata.labels["gems.io/t"]',))]
    assert [(d.path, d.live, d.desired) for d in differences(found, wanted)] == [
        ('metadata.labels["gems.io/t"]', "b", "a"), ("metadata.labels.new", None, "1"),
    ]  # fmt: skip


def test_what_was_put_back_is_told_as_a_condition() -> None:
    """With the manager, for that very object alone."""
    status = wire.ObjectStatus(uid="row")
    found = [FieldConflict("kubectl-edit", ("spec.a", "spec.b")), FieldConflict("", ("spec.c",))]
    tell_overwritten(status, Overwritten("another", found, datetime.now(UTC)))
    assert not status.conditions
    tell_overwritten(status, Overwritten("row", found, datetime.now(UTC)))
    (condition,) = status.conditions
    assert (condition.type, condition.reason) == ("FieldsOverwritten", "FIELD_CONFLICT")
    assert text(found) == "kubectl-edit had set spec.a, spec.b; an unnamed manager had set spec.c"
    assert condition.message.startswith(text(found))
