"""As whom a user acts in a cluster: `gems:user:<username>` with a group for each membership that has environments there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from libs.faults import Precondition
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.rights import Membership
from services.gateway.identity.role_table import Role

MOST_GROUPS = 500  # more do not fit the request headers of an API server


@dataclass(frozen=True, slots=True)
class Principal:
    """What the agent impersonates."""

    user: str
    uid: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """An environment and where it is; `granted` once the cluster said that its groups may be acted with."""

    tenant: str
    project: str
    environment: str
    cluster_uid: str
    cluster: str
    namespace: str
    granted: bool = True

    @property
    def name(self) -> str:
        """Resource name."""
        return f"tenants/{self.tenant}/projects/{self.project}/environments/{self.environment}"


class TooManyGroups(Precondition):
    """The user has more memberships on the cluster than a request can carry."""

    reason = "TOO_MANY_GROUPS"


def scopes_with_environments(places: Iterable[Place]) -> frozenset[str]:
    """Resource names of some environments, and of their projects and tenants.

    Those that their cluster has not granted yet are left out: one group that the agent may not act with would have the
    API server refuse a user's whole request, also where it has long been at work.
    """
    places = [p for p in places if p.granted]
    projects = {f"tenants/{p.tenant}/projects/{p.project}" for p in places}
    return frozenset({p.name for p in places} | projects | {f"tenants/{p.tenant}" for p in places})


def principal(username: str, uid: UUID, role: PlatformRole, memberships: Iterable[Membership], here: frozenset[str]) -> Principal:
    """The principal of a user in one cluster; raises TooManyGroups.

    Args:
        username: who.
        uid: the user's uid.
        role: platform role.
        memberships: all of the user's.
        here: `scopes_with_environments` of that cluster.
    """
    found = sorted({*_platform_groups(role), *_groups(memberships, here)})
    if len(found) > MOST_GROUPS:
        raise TooManyGroups(
            f"users/{username} has {len(found)} memberships with environments on this cluster, at most {MOST_GROUPS} can be sent; "
            "a role at the tenant or project replaces many at its environments",
            metadata={"groups": str(len(found)), "limit": str(MOST_GROUPS)},
        )
    return Principal(f"gems:user:{username}", str(uid), tuple(found))


def _platform_groups(role: PlatformRole) -> Iterable[str]:
    return [] if role is PlatformRole.USER else [f"gems:platform:{role.value.lower()}"]


def _groups(memberships: Iterable[Membership], here: frozenset[str]) -> Iterable[str]:
    for membership in memberships:
        if membership.suspended or membership.scope not in here or membership.role is Role.TENANT_MEMBER:
            continue
        level, role = membership.role.value
        path = "/".join(part for part in (membership.tenant, membership.project, membership.environment) if part)
        yield f"gems:{level}:{path}:{role.lower()}"
