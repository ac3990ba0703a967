"""Keys: whom a change concerns."""

from __future__ import annotations

from libs.reconcile import keys

FOUND = {
    "metadata": {
        "name": "web", "namespace": "shop", "labels": {"team": "acme"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "web-1", "controller": True}, {"kind": "Other", "name": "x"}],
    }
}  # fmt: skip


def test_each_mapping_finds_its_key() -> None:
    """Name, namespace, label and controlling owner."""
    assert list(keys.own_name(FOUND)) == ["web"]
    assert list(keys.namespace(FOUND)) == ["shop"]
    assert list(keys.label("team")(FOUND)) == ["acme"]
    assert list(keys.controller("ReplicaSet")(FOUND)) == ["web-1"]


def test_what_is_not_there_concerns_nobody() -> None:
    """No label, no namespace, an owner of another kind or one that does not control: no key."""
    bare = {"metadata": {"name": "node"}}
    assert list(keys.namespace(bare)) == list(keys.label("team")(bare)) == list(keys.controller("Other")(FOUND)) == []
