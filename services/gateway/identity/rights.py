"""What a user may do: memberships looked up in the role table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from libs.rpc.call import Scopes
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.role_table import ROWS, Role, Where

_BELOW = "/**"
_NOWHERE = Scopes()
_EVERYWHERE = Scopes(everything=True)


@dataclass(frozen=True, slots=True)
class Membership:
    """A role at a tenant, project or environment; empty names above the level do not occur, below it they are empty."""

    role: Role
    tenant: str
    project: str = ""
    environment: str = ""
    suspended: bool = False

    @classmethod
    def of(cls, level: str, role: str, tenant: str, project: str, environment: str, *, suspended: bool) -> Membership:
        """A row of tenancy.members; ValueError when the role does not fit the level."""
        return cls(Role((level.lower(), role.upper())), tenant, project, environment, suspended)

    @property
    def scope(self) -> str:
        """Resource name of the place."""
        name = f"tenants/{self.tenant}"
        if self.project:
            name += f"/projects/{self.project}"
        if self.environment:
            name += f"/environments/{self.environment}"
        return name

    @property
    def effective(self) -> Role:
        """The role that counts now."""
        return Role.SUSPENDED if self.suspended else self.role


class MemberRights:
    """A user's rights: its platform role and its memberships.

    `clusters` gives each tenant's clusters by name, for what a member may do with the clusters of its tenants.
    """

    def __init__(
        self,
        username: str,
        platform_role: PlatformRole,
        memberships: Iterable[Membership] = (),
        clusters: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.username = username
        self.platform_role = platform_role
        self.memberships = tuple(memberships)
        self._clusters = clusters or {}
        self._known: dict[str, Scopes] = {}

    def scopes(self, permission: str) -> Scopes:
        """Where the permission is held; nowhere when the table does not know it."""
        found = self._known.get(permission)
        if found is None:
            found = self._known[permission] = self._scopes(permission)
        return found

    def _scopes(self, permission: str) -> Scopes:
        if permission not in known_permissions():
            return _NOWHERE
        if self.platform_role is PlatformRole.ADMIN:
            return _EVERYWHERE
        if self.platform_role is PlatformRole.AUDITOR and permission in audited_permissions():
            return _EVERYWHERE
        names = set(self._names(permission))
        trees = _outermost(name.removesuffix(_BELOW) for name in names if name.endswith(_BELOW))
        exact = frozenset(name for name in names if not name.endswith(_BELOW))
        covered = Scopes(trees=trees)
        return Scopes(trees=trees, exact=frozenset(name for name in exact if not covered.covers(name)))

    def _names(self, permission: str) -> Iterable[str]:
        cells = _cells(permission)
        for pattern in cells.get(Role.SELF, ()):
            yield pattern.format(user=self.username)
        for membership in self.memberships:
            for pattern in cells.get(membership.effective, ()):
                yield from self._expand(pattern, membership)

    def _expand(self, pattern: str, membership: Membership) -> Iterable[str]:
        if pattern == "{cluster}":
            return [f"clusters/{name}" for name in self._clusters.get(membership.tenant, ())]
        tenant = f"tenants/{membership.tenant}"
        project = f"{tenant}/projects/{membership.project}"
        return [pattern.format(scope=membership.scope, tenant=tenant, project=project, user=self.username)]


def _outermost(trees: Iterable[str]) -> frozenset[str]:
    kept: list[str] = []
    for tree in sorted(set(trees), key=len):
        if not any(tree.startswith(outer + "/") for outer in kept):
            kept.append(tree)
    return frozenset(kept)


@cache
def known_permissions() -> frozenset[str]:
    """Every permission of the table."""
    return frozenset(permission for row in ROWS for permission in row.permissions)


@cache
def audited_permissions() -> frozenset[str]:
    """What the platform auditor holds everywhere."""
    return frozenset(permission for row in ROWS if row.audited for permission in row.permissions)


@cache
def _cells(permission: str) -> Mapping[Role, Where]:
    found: dict[Role, Where] = {}
    for row in ROWS:
        if permission in row.permissions:
            for role, where in row.cells.items():
                found[role] = (*found.get(role, ()), *where)
    return found
