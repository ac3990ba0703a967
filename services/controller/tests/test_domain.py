"""Whose a namespace is, when a tombstone counts, and which groups there are."""

from __future__ import annotations

from typing import Any

import pytest

from services.controller import domain, impersonated
from services.controller.tests import objects

OWN = "kubegems-system"
LABELS = {domain.TENANT: "acme", domain.PROJECT: "shop", domain.ENVIRONMENT: "dev"}


def claim(found: dict[str, Any] | None, **spec: Any) -> domain.Claim:
    return domain.claim(domain.environment(objects.environment(**spec)), found, OWN)


@pytest.mark.parametrize("name", ["default", "kube-system", "kube-public", "kubegems", "kubegems-local", "gems-x", OWN])
def test_a_reserved_namespace_is_never_an_environments(name: str) -> None:
    """Not even one that does not exist yet, and not by adoption."""
    wanted = domain.environment(objects.environment(name, adoptNamespace=True))
    assert domain.claim(wanted, None, OWN).reason == "NamespaceReserved"


def test_the_controllers_own_namespace_is_reserved_under_any_name() -> None:
    """Installed elsewhere, it is protected there."""
    assert domain.reserved("ops", "ops")
    assert not domain.reserved("ops", OWN)


def test_a_new_namespace_may_be_made() -> None:
    """Nothing stands in the way."""
    assert claim(None) == domain.Claim()


def test_a_foreign_namespace_is_left_alone_unless_adoption_is_asked_for() -> None:
    """Existing and unmarked: a refusal, or with the confirm field a take-over."""
    assert claim(objects.namespace()).reason == "NamespaceExists"
    assert claim(objects.namespace(), adoptNamespace=True) == domain.Claim()


def test_another_environments_namespace_is_refused_even_for_adoption() -> None:
    """An annotation or a tenant's label says whose it is."""
    marked = objects.namespace(annotations={domain.OWNER_UID: "other-uid", domain.OWNER_NAME: "acme/shop/test"})
    assert claim(marked, adoptNamespace=True).reason == "NamespaceTaken"
    labelled = objects.namespace(labels={domain.TENANT: "globex"})
    assert claim(labelled, adoptNamespace=True).reason == "NamespaceTaken"


def test_ours_is_known_by_any_of_three_marks() -> None:
    """Annotation, all three labels, or the uid in the status: losing one or two of them is drift, not a change of hands."""
    assert claim(objects.namespace(annotations={domain.OWNER_UID: "row-uid"}, labels={domain.TENANT: "globex"})).taken
    assert claim(objects.namespace(labels=LABELS)).taken
    found = {**objects.environment(), "status": {"namespaceUid": "ns-uid"}}
    assert domain.claim(domain.environment(found), objects.namespace(), OWN).taken


def test_an_environment_that_changed_its_project_is_refused() -> None:
    """What CEL forbids in the CRD is seen here too, for servers without CEL."""
    made = objects.namespace(annotations={domain.OWNER_UID: "row-uid", domain.OWNER_NAME: "acme/other/dev"})
    assert claim(made).reason == "SpecImmutable"


@pytest.mark.parametrize(
    ("tombstone", "generation", "counts"),
    [("7", "5", True), ("5", "5", True), ("4", "5", False), ("", "5", False), ("x", "5", False), ("7", "", True)],
)
def test_a_tombstone_counts_only_when_it_is_not_older_than_the_wish(tombstone: str, generation: str, *, counts: bool) -> None:
    """An environment wanted again after a tombstone has outlived it."""
    found = objects.environment(annotations={domain.TOMBSTONE: tombstone, domain.GENERATION: generation})
    assert domain.environment(found).tombstoned is counts


def test_the_rows_uid_wins_over_the_objects() -> None:
    """An object made again by the hub is the same environment."""
    assert domain.environment(objects.environment()).uid == "row-uid"
    assert domain.environment(objects.environment(annotations={"a": "b"})).uid == "object-uid"


def test_groups_are_those_of_rights() -> None:
    """Operators: tenant admin, project admin and ops, environment operator; readers: dev, test, environment reader."""
    groups = domain.groups_of(domain.environment(objects.environment()))
    assert set(groups["gems:operator"]) == {
        "gems:tenant:acme:admin", "gems:project:acme/shop:admin", "gems:project:acme/shop:ops", "gems:environment:acme/shop/dev:operator",
    }  # fmt: skip
    assert set(groups["gems:reader"]) == {
        "gems:project:acme/shop:dev",
        "gems:project:acme/shop:test",
        "gems:environment:acme/shop/dev:reader",
    }


def test_impersonated_groups_hold_every_bound_group_and_no_other_kind() -> None:
    """What is bound in a namespace may be sent; every name starts with `gems:`; tenant members have no group."""
    wanted = domain.environment(objects.environment())
    found = domain.impersonated_groups(["empty"], [wanted])
    assert {group for groups in domain.groups_of(wanted).values() for group in groups} <= found
    assert "gems:tenant:empty:admin" in found
    assert all(group.startswith("gems:") for group in found)
    assert not any(group.endswith(":member") for group in found)


def test_misnamed_objects_are_told() -> None:
    """The twin of the CRDs' rule that a name equals a field."""
    assert domain.misnamed({"metadata": {"name": "a"}, "spec": {"tenant": "b"}}, "tenant")
    assert not domain.misnamed({"metadata": {"name": "a"}, "spec": {"tenant": "a"}}, "tenant")


def test_no_group_is_no_rule() -> None:
    """A rule without names would allow every group, `system:masters` too."""
    assert impersonated.rules(set()) == []
    assert impersonated.rules({"gems:b", "gems:a"})[0]["resourceNames"] == ["gems:a", "gems:b"]
