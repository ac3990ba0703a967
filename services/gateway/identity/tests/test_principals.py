"""As whom users act in clusters."""

from __future__ import annotations

from uuid import UUID

import pytest

from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.principals import MOST_GROUPS, Place, Principal, TooManyGroups, principal, scopes_with_environments
from services.gateway.identity.rights import Membership
from services.gateway.identity.role_table import Role

UID = UUID(int=7)
HERE = scopes_with_environments([Place("acme", "shop", "dev", "c1", "local", "acme-shop-dev")])


def _principal(*memberships: Membership, role: PlatformRole = PlatformRole.USER, here: frozenset[str] = HERE) -> Principal:
    return principal("dev", UID, role, memberships, here)


def test_each_membership_with_environments_there_is_one_group() -> None:
    """Tenant admin, project role and environment role, in the form that the cluster's role bindings name."""
    found = _principal(
        Membership(Role.TENANT_ADMIN, "acme"),
        Membership(Role.PROJECT_OPS, "acme", "shop"),
        Membership(Role.ENVIRONMENT_OPERATOR, "acme", "shop", "dev"),
    )
    assert found.user == "gems:user:dev"
    assert found.uid == str(UID)
    assert set(found.groups) == {"gems:tenant:acme:admin", "gems:project:acme/shop:ops", "gems:environment:acme/shop/dev:operator"}


def test_memberships_without_environments_there_give_no_group() -> None:
    """Another project, another environment, another tenant, or no environment at all."""
    elsewhere = [
        Membership(Role.TENANT_ADMIN, "globex"),
        Membership(Role.PROJECT_OPS, "acme", "blog"),
        Membership(Role.ENVIRONMENT_READER, "acme", "shop", "live"),
    ]
    assert _principal(*elsewhere).groups == ()
    assert _principal(Membership(Role.TENANT_ADMIN, "acme"), here=frozenset()).groups == ()


def test_plain_members_and_suspended_tenants_give_no_group() -> None:
    """Being a tenant's member says nothing in a cluster, and neither does any role while the tenant is suspended."""
    assert _principal(Membership(Role.TENANT_MEMBER, "acme")).groups == ()
    assert _principal(Membership(Role.TENANT_ADMIN, "acme", suspended=True)).groups == ()


def test_platform_roles_are_groups_everywhere() -> None:
    """Also where no environment is; a plain user has none."""
    assert _principal(role=PlatformRole.ADMIN, here=frozenset()).groups == ("gems:platform:admin",)
    assert _principal(role=PlatformRole.AUDITOR).groups == ("gems:platform:auditor",)
    assert _principal().groups == ()


def test_more_groups_than_a_request_carries_are_an_error_that_says_so() -> None:
    """At the limit it works; one more is FAILED_PRECONDITION with the numbers, never a silent cut."""
    many = [Place("acme", f"p{n}", "dev", "c1", "local", f"ns{n}") for n in range(MOST_GROUPS + 1)]
    memberships = [Membership(Role.PROJECT_DEV, "acme", place.project) for place in many]
    here = scopes_with_environments(many)
    assert len(_principal(*memberships[:MOST_GROUPS], here=here).groups) == MOST_GROUPS
    with pytest.raises(TooManyGroups) as caught:
        _principal(*memberships, here=here)
    assert caught.value.metadata == {"groups": str(MOST_GROUPS + 1), "limit": str(MOST_GROUPS)}
