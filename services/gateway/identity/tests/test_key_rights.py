"""A key's rights are a part of its owner's, whatever both are; and what a request to a cluster needs of a key."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from libs.clock import new_id
from libs.faults import PermissionDenied
from libs.rpc.call import Caller, Kind, Scopes
from libs.tunnel.kubernetes import target
from services.gateway.identity import kubernetes_limits
from services.gateway.identity.api_key_domain import NEVER, KeyText, Limits, reads
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.narrowed import KeyRights, intersection, touches
from services.gateway.identity.principals import Place
from services.gateway.identity.rights import MemberRights, Membership, known_permissions
from services.gateway.identity.role_table import Role

TENANTS, PROJECTS, ENVIRONMENTS, CLUSTERS = ("acme", "acme2", "globex"), ("shop", "blog"), ("dev", "live"), ("east", "west")
PERMISSIONS = sorted(known_permissions())


@dataclass
class Everywhere:
    """Environments, and tenants' clusters."""

    all: tuple[Place, ...] = ()
    clusters: dict[str, list[str]] = field(default_factory=dict)

    def clusters_of(self, tenant: str) -> list[str]:
        return self.clusters.get(tenant, [])


def _names() -> list[str]:
    found = ["", "users/me", "users/me/apiKeys/k", "users/other", *(f"clusters/{c}" for c in CLUSTERS), "clusters/eastern"]
    for tenant in TENANTS:
        found += [f"tenants/{tenant}", f"tenants/{tenant}/quotas/east", f"tenants/{tenant}/members/me"]
        for project in PROJECTS:
            found += [f"tenants/{tenant}/projects/{project}", f"tenants/{tenant}/projects/{project}/members/me"]
            found += [f"tenants/{tenant}/projects/{project}/environments/{e}{below}" for e in ENVIRONMENTS for below in ("", "/apps/a")]
    return found


NAMES = _names()
SCOPES = ["", *(n for n in NAMES if n.startswith(("tenants/", "clusters/")) and "/apps/" not in n and "/members/" not in n)]


def _owner(dice: random.Random) -> MemberRights:
    """Somebody with some memberships, rarely a platform role."""
    memberships = []
    for role in dice.sample([r for r in Role if r not in (Role.SELF, Role.SUSPENDED)], dice.randrange(4)):
        level = role.value[0]
        tenant, project = dice.choice(TENANTS), dice.choice(PROJECTS) if level != "tenant" else ""
        environment = dice.choice(ENVIRONMENTS) if level == "environment" else ""
        memberships.append(Membership(role, tenant, project, environment, dice.random() < 0.1))
    platform = dice.choices(list(PlatformRole), [8, 1, 1])[0]
    return MemberRights("me", platform, memberships, {tenant: [dice.choice(CLUSTERS)] for tenant in TENANTS})


def _limits(dice: random.Random) -> Limits:
    permissions = frozenset(dice.sample(PERMISSIONS, dice.randrange(1, 12))) if dice.random() < 0.5 else frozenset()
    return Limits("k", permissions, dice.random() < 0.3, dice.choice(SCOPES))


def _everywhere(dice: random.Random) -> Everywhere:
    places = tuple(
        Place(t, p, e, "uid", dice.choice(CLUSTERS), f"{t}-{p}-{e}")
        for t in TENANTS for p in PROJECTS for e in ENVIRONMENTS if dice.random() < 0.5
    )  # fmt: skip
    return Everywhere(places, {tenant: dice.sample(CLUSTERS, dice.randrange(3)) for tenant in TENANTS})


@pytest.mark.parametrize("seed", range(60))
def test_a_key_never_gives_what_its_owner_does_not_hold(seed: int) -> None:
    """Owners, limits and places at random: at every name and for every permission, key ⇒ owner; and limits are kept."""
    dice = random.Random(seed)
    owner, limits, places = _owner(dice), _limits(dice), _everywhere(dice)
    key, given = KeyRights(owner, limits, places), 0
    for permission in PERMISSIONS:
        for name in NAMES:
            if not key.scopes(permission).covers(name):
                continue
            given += 1
            assert owner.scopes(permission).covers(name), (permission, name, limits)
            assert permission not in NEVER
            assert not limits.permissions or permission in limits.permissions
            assert not limits.read_only or reads(permission)
            if limits.scope.startswith("tenants/"):
                assert name == limits.scope or name.startswith((limits.scope + "/", "clusters/")), (permission, name, limits)
            if limits.scope.startswith("clusters/"):
                assert name == limits.scope or name.startswith((limits.scope + "/", "tenants/")), (permission, name, limits)
    if limits == Limits("k") and owner.platform_role is PlatformRole.ADMIN:
        assert given, "the control: an unlimited key of an admin gives something"


@pytest.mark.parametrize("seed", range(40))
def test_an_intersection_covers_just_what_both_cover(seed: int) -> None:
    """Of any scopes with any trees, name by name."""
    dice = random.Random(seed)
    held = Scopes(dice.random() < 0.2, frozenset(dice.sample(NAMES[1:], 3)), frozenset(dice.sample(NAMES, 3)))
    trees = frozenset(dice.sample(NAMES[1:], dice.randrange(1, 4)))
    cut = intersection(held, trees)
    for name in NAMES:
        assert cut.covers(name) == (held.covers(name) and Scopes(trees=trees).covers(name)), (name, held, trees)


def test_an_unlimited_key_gives_all_but_what_makes_credentials() -> None:
    """The control of the property above: nothing is lost but NEVER."""
    owner = MemberRights("me", PlatformRole.ADMIN)
    key = KeyRights(owner, Limits("k"), Everywhere())
    assert {p for p in PERMISSIONS if not key.scopes(p).everything} == NEVER


def test_a_key_of_one_environment_reaches_its_cluster_and_nothing_beside() -> None:
    """Its environment, and the cluster where that is; not the project's other one, not the tenant."""
    place = Place("acme", "shop", "dev", "uid", "east", "acme-shop-dev")
    owner = MemberRights("me", PlatformRole.USER, [Membership(Role.TENANT_ADMIN, "acme")], {"acme": ["east", "west"]})
    key = KeyRights(owner, Limits("k", scope=place.name), Everywhere((place,), {"acme": ["east", "west"]}))
    assert key.scopes("tenancy.environments.update").trees == {place.name}
    assert not key.scopes("tenancy.tenants.get").covers("tenants/acme")
    assert key.scopes("tenancy.environments.get").covers("tenants/acme/projects/shop/environments/live") is False
    assert key.scopes("fleet.clusters.get").covers("clusters/east")
    assert not key.scopes("fleet.clusters.get").covers("clusters/west")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("kgk_" + "a" * 32 + "." + "b" * 43, True), ("kgk_" + "a" * 32 + "." + "b" * 42, False), ("kgk_" + "a" * 32, False),
     ("kgk_" + "A" * 32 + "." + "b" * 43, False), ("kgk_" + "a" * 32 + "." + "b" * 43 + "\n", False), ("", False), ("kgk_", False)],
)  # fmt: skip
def test_only_whole_texts_are_keys(text: str, is_one: bool) -> None:
    """Truncated, in other letters, or with something behind: no key."""
    assert (KeyText.parse(text) is not None) == is_one


def test_a_secret_matches_its_own_hash_only() -> None:
    """Not another's, and never none."""
    one, other = KeyText.new(new_id()), KeyText.new(new_id())
    assert one.matches(one.hash)
    assert not one.matches(other.hash)
    assert not one.matches(None)


DEV = "tenants/acme/projects/shop/environments/dev"
_NS = "/api/v1/namespaces/acme-shop-dev"
READ, WRITE, SCOPED = Limits("k", read_only=True), Limits("k"), Limits("k", scope="tenants/acme/projects/shop")
LISTED = Limits("k", frozenset({"fleet.clusters.connect", "workloads.objects.get", "workloads.pods.logs"}))


@pytest.mark.parametrize(
    ("limits", "method", "path", "environment", "allowed"),
    [
        (READ, "GET", f"{_NS}/pods", DEV, True),
        (READ, "GET", f"{_NS}/pods?watch=1", DEV, True),
        (READ, "GET", f"{_NS}/pods/a/log", DEV, True),
        (READ, "GET", "/api", "", True),
        (READ, "POST", f"{_NS}/pods", DEV, False),
        (READ, "PATCH", f"{_NS}/pods/a", DEV, False),
        (READ, "DELETE", f"{_NS}/pods", DEV, False),
        (READ, "POST", f"{_NS}/pods/a/log", DEV, False),
        (READ, "GET", f"{_NS}/pods/a/exec", DEV, False),
        (READ, "POST", f"{_NS}/pods/a/portforward", DEV, False),
        (READ, "GET", f"{_NS}/services/a/proxy/x", DEV, False),
        (READ, "GET", f"{_NS}/secrets", DEV, False),
        (READ, "GET", f"{_NS}/secrets/a", DEV, False),
        (READ, "GET", "/api/v1/watch/secrets", "", False),
        (READ, "POST", "/version", "", False),
        (WRITE, "GET", f"{_NS}/secrets", DEV, True),
        (WRITE, "POST", f"{_NS}/pods/a/exec", DEV, True),
        (WRITE, "DELETE", f"{_NS}/pods/a", DEV, True),
        (SCOPED, "PATCH", "/apis/apps/v1/namespaces/acme-shop-dev/deployments/a", DEV, True),
        (SCOPED, "GET", "/openapi/v3", "", True),
        (SCOPED, "GET", f"{_NS}/pods", "tenants/acme/projects/shopping/environments/dev", False),
        (SCOPED, "GET", "/api/v1/namespaces/kube-system/pods", "", False),
        (SCOPED, "GET", "/api/v1/pods", "", False),
        (SCOPED, "GET", "/api/v1/nodes", "", False),
        (LISTED, "GET", f"{_NS}/pods/a", DEV, True),
        (LISTED, "GET", f"{_NS}/pods/a/log", DEV, True),
        (LISTED, "GET", f"{_NS}/pods", DEV, False),
        (LISTED, "PUT", f"{_NS}/pods/a", DEV, False),
        (Limits("k", frozenset({"workloads.objects.get"})), "GET", f"{_NS}/pods/a", DEV, False),
    ],
)
def test_what_a_key_may_do_in_a_cluster(limits: Limits, method: str, path: str, environment: str, allowed: bool) -> None:
    """Reads for one that only reads, its own environments for one with a scope, what is listed for one with a list."""
    path, _, query = path.partition("?")
    caller = Caller(Kind.USER, "me", "uid", "s", KeyRights(MemberRights("me", PlatformRole.ADMIN), limits, Everywhere()))
    asked = target(method, path, query, "")
    kubernetes_limits.check(Caller(Kind.USER, "me", "uid", "s", MemberRights("me", PlatformRole.USER)), asked, environment)
    if allowed:
        kubernetes_limits.check(caller, asked, environment)
        return
    with pytest.raises(PermissionDenied):
        kubernetes_limits.check(caller, asked, environment)


def test_scopes_touch_along_one_line() -> None:
    """Above, at and below; never beside, nor by a name that starts alike."""
    assert touches("", "tenants/acme")
    assert touches("tenants/acme", "tenants/acme/projects/shop")
    assert touches("tenants/acme/projects/shop", "tenants/acme")
    assert not touches("tenants/acme", "tenants/acme2")
