"""The rights of an API key: those of its owner as they are now, cut down to what the key gives and where it is good."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from libs.rpc.call import Rights, Scopes
from services.gateway.identity.api_key_domain import Limits
from services.gateway.identity.principals import Place

_NOWHERE = Scopes()
_CLUSTERS = "fleet.clusters."


class Everywhere(Protocol):
    """What is known of environments and clusters (`directory.Places`)."""

    @property
    def all(self) -> tuple[Place, ...]:
        """Every environment."""
        ...

    def clusters_of(self, tenant: str) -> Iterable[str]:
        """Names of the clusters that a tenant may use."""
        ...


class KeyRights:
    """Never more than the owner's: each answer is a cut of the owner's own answer.

    Args:
        owner: rights of the key's owner, of now.
        limits: what narrows the key.
        places: where environments are, of now.
    """

    def __init__(self, owner: Rights, limits: Limits, places: Everywhere) -> None:
        self.owner = owner
        self.limits = limits
        self._places = places
        self._known: dict[str, Scopes] = {}

    def scopes(self, permission: str) -> Scopes:
        """Where the permission is held by owner and key alike."""
        found = self._known.get(permission)
        if found is None:
            found = self._known[permission] = self._scopes(permission)
        return found

    def _scopes(self, permission: str) -> Scopes:
        if not self.limits.gives(permission):
            return _NOWHERE
        held = self.owner.scopes(permission)
        if not self.limits.scope:
            return held
        return intersection(held, frozenset(self._within(permission)))

    def _within(self, permission: str) -> Iterable[str]:
        """Names at and below which the key is good for a permission."""
        scope = self.limits.scope
        yield scope
        if scope.startswith("clusters/"):
            yield from (place.name for place in self._places.all if f"clusters/{place.cluster}" == scope)
        elif permission.startswith(_CLUSTERS):
            yield from (f"clusters/{name}" for name in self._clusters(scope))

    def _clusters(self, scope: str) -> Iterable[str]:
        """Clusters of a tenant, project or environment."""
        if scope.count("/") > 3:  # noqa: PLR2004 -- tenants/{t}/projects/{p}/environments/{e}: it is on one cluster
            return [place.cluster for place in self._places.all if place.name == scope]
        return self._places.clusters_of(scope.split("/")[1])


def intersection(held: Scopes, trees: frozenset[str]) -> Scopes:
    """What is covered both by some scopes and by trees."""
    if held.everything:
        return Scopes(trees=trees)
    within = Scopes(trees=trees)
    inner = {tree for tree in held.trees if within.covers(tree)}
    outer = {tree for tree in trees if Scopes(trees=held.trees).covers(tree)}
    exact = frozenset(name for name in held.exact if within.covers(name))
    return Scopes(trees=frozenset(inner | outer), exact=exact)


def touches(scope: str, other: str) -> bool:
    """Whether one of two names is the other, or lies below it; an empty scope is everywhere."""
    return not scope or scope == other or other.startswith(scope + "/") or scope.startswith(other + "/")
