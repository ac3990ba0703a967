"""What memberships give, and what they do not."""

from __future__ import annotations

import pytest

from libs.rpc import Scopes
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.rights import MemberRights, Membership, audited_permissions, known_permissions
from services.gateway.identity.role_table import ROWS, Role

SHOP = "tenants/acme/projects/shop"
DEV = f"{SHOP}/environments/dev"
DANGEROUS = ("secrets.get", ".exec", ".attach", ".portforward", ".files", ".debug", ".impersonate", ".delete", ".create", ".update")


def _member(role: Role, *, suspended: bool = False) -> MemberRights:
    level = role.value[0]
    project = "shop" if level in ("project", "environment") else ""
    environment = "dev" if level == "environment" else ""
    membership = Membership(role, "acme", project, environment, suspended)
    return MemberRights("dev", PlatformRole.USER, [membership], {"acme": ["local"]})


def test_the_admin_holds_every_permission_everywhere() -> None:
    """Every row, at any name and at the platform; what the table does not know is held by nobody."""
    rights = MemberRights("root", PlatformRole.ADMIN)
    assert known_permissions()
    assert all(rights.scopes(p) == Scopes(everything=True) for p in known_permissions())
    assert rights.scopes("tenancy.tenants.obliterate").empty


def test_the_auditor_reads_everything_and_touches_nothing() -> None:
    """No write, no secret value, no exec, no impersonation is among what it holds everywhere."""
    rights = MemberRights("eve", PlatformRole.AUDITOR)
    for permission in ("tenancy.tenants.view", "audit.events.list", "identity.users.list", "fleet.clusters.view", "workloads.objects.list"):
        assert rights.scopes(permission).everything
    assert not [p for p in audited_permissions() if p.endswith(DANGEROUS)]
    assert rights.scopes("workloads.secrets.get").empty
    assert rights.scopes("workloads.pods.exec").empty
    assert rights.scopes("identity.users.update") == Scopes(trees=frozenset({"users/eve"}))


def test_a_user_without_membership_holds_itself_alone() -> None:
    """Own user and sessions; nobody whose name merely starts alike; no tenant."""
    rights = MemberRights("dev", PlatformRole.USER)
    assert rights.scopes("identity.users.get").covers("users/dev")
    assert rights.scopes("identity.sessions.delete").covers("users/dev/sessions/1")
    assert not rights.scopes("identity.users.get").covers("users/dev2")
    held = [p for p in known_permissions() if not rights.scopes(p).empty]
    assert {p.split(".")[0] for p in held} == {"identity", "messages"}


def test_a_tenant_member_knows_the_tenants_name_and_nothing_below() -> None:
    """The name and the own membership; no other member, no project, no environment, no live changes."""
    rights = _member(Role.TENANT_MEMBER)
    assert rights.scopes("tenancy.tenants.get") == Scopes(exact=frozenset({"tenants/acme"}))
    assert rights.scopes("tenancy.members.get") == Scopes(exact=frozenset({"tenants/acme/members/dev"}))
    below = [p for p in known_permissions() for name in (SHOP, DEV, f"{DEV}/members/dev") if rights.scopes(p).covers(name)]
    assert below == []
    assert not rights.scopes("messages.messages.subscribe").covers("tenants/acme")


@pytest.mark.parametrize("role", [Role.ENVIRONMENT_OPERATOR, Role.ENVIRONMENT_READER])
def test_an_environment_role_sees_only_names_above(role: Role) -> None:
    """It may get tenant and project by name, view neither, and reads no sibling environment."""
    rights = _member(role)
    assert rights.scopes("tenancy.tenants.get").covers("tenants/acme")
    assert rights.scopes("tenancy.projects.get").covers(SHOP)
    assert rights.scopes("tenancy.tenants.view").empty
    assert rights.scopes("tenancy.projects.view").empty
    assert rights.scopes("tenancy.environments.get").covers(DEV)
    for sibling in (f"{SHOP}/environments/dev2", f"{SHOP}/environments/de", SHOP, "tenants/acme2"):
        assert not rights.scopes("tenancy.environments.get").covers(sibling)
    assert rights.scopes("workloads.pods.exec").covers(DEV) == (role is Role.ENVIRONMENT_OPERATOR)


@pytest.mark.parametrize("role", [r for r in Role if r not in (Role.SELF, Role.SUSPENDED)])
def test_a_suspended_tenant_leaves_its_name_alone(role: Role) -> None:
    """Whatever the role was: the tenant's name and the own membership, no cluster, nothing to act on."""
    rights = _member(role, suspended=True)
    held = {p: rights.scopes(p) for p in known_permissions() if not p.startswith(("identity.", "messages."))}
    own = next(iter(rights.memberships)).scope + "/members/dev"
    assert {p for p, scopes in held.items() if not scopes.empty} == {
        "tenancy.tenants.get",
        "tenancy.tenants.list",
        "tenancy.members.get",
    }
    assert held["tenancy.tenants.get"] == Scopes(exact=frozenset({"tenants/acme"}))
    assert held["tenancy.members.get"] == Scopes(exact=frozenset({own}))
    assert not rights.scopes("messages.messages.subscribe").covers(own)


def test_roles_add_up_and_the_outer_one_covers_the_inner() -> None:
    """Reader of one environment and dev of another project: both; what a tree covers is not said twice."""
    memberships = [
        Membership(Role.TENANT_MEMBER, "acme"),
        Membership(Role.PROJECT_DEV, "acme", "shop"),
        Membership(Role.ENVIRONMENT_OPERATOR, "acme", "shop", "dev"),
        Membership(Role.ENVIRONMENT_READER, "acme", "blog", "live"),
    ]
    rights = MemberRights("dev", PlatformRole.USER, memberships)
    assert rights.scopes("tenancy.environments.get").trees == {SHOP, "tenants/acme/projects/blog/environments/live"}
    assert rights.scopes("workloads.pods.exec").trees == {DEV}
    assert rights.scopes("tenancy.projects.get") == Scopes(trees=frozenset({SHOP}), exact=frozenset({"tenants/acme/projects/blog"}))


def test_clusters_are_those_of_own_tenants() -> None:
    """Name, state, kubeconfig and /k8s of the tenant's clusters; not all of it, and no other cluster."""
    rights = _member(Role.TENANT_MEMBER)
    for verb in ("get", "list", "kubeconfig", "connect"):
        assert rights.scopes(f"fleet.clusters.{verb}") == Scopes(exact=frozenset({"clusters/local"}))
    for verb in ("view", "update", "delete", "confirm", "impersonate"):
        assert rights.scopes(f"fleet.clusters.{verb}").empty


def test_project_roles_read_members_of_environments_but_not_of_the_project() -> None:
    """The project's own list is its admin's."""
    rights = _member(Role.PROJECT_OPS)
    assert rights.scopes("tenancy.members.list").covers(DEV)
    assert not rights.scopes("tenancy.members.list").covers(SHOP)
    assert _member(Role.PROJECT_ADMIN).scopes("tenancy.members.list").covers(SHOP)
    assert rights.scopes("tenancy.members.get").covers(f"{SHOP}/members/dev"), "but its own membership"


def test_membership_rows_that_do_not_fit_are_refused() -> None:
    """A role of another level is a mistake, not a right."""
    assert Membership.of("project", "ops", "acme", "shop", "", suspended=False).role is Role.PROJECT_OPS
    with pytest.raises(ValueError, match="READER"):
        Membership.of("tenant", "reader", "acme", "", "", suspended=False)


def test_rows_have_titles_and_no_permission_twice_in_one_row() -> None:
    """The table reads well: one title each, none empty, each permission has the three parts."""
    assert len({row.title for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert len(set(row.permissions)) == len(row.permissions)
        assert all(len(p.split(".")) == 3 for p in row.permissions)
