"""Pure rules of push: who sees what, and the words for it. No wire, no broker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from libs.faults import Exhausted, Unauthenticated, Unavailable

Place = tuple[str, str]  # (cluster uid, namespace)


class TooManyStreams(Exhausted):
    """The user has as many subscriptions open as one replica allows."""

    reason = "TOO_MANY_STREAMS"


class SessionEnded(Unauthenticated):
    """The session or user that the stream belonged to has ended."""

    reason = "SESSION_ENDED"


class GrantsSilent(Unavailable):
    """The gateway has not confirmed the rights for too long; nothing may be sent any more."""

    reason = "RIGHTS_UNCONFIRMED"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where an environment runs."""

    name: str
    cluster: str
    cluster_uid: str
    namespace: str

    @property
    def place(self) -> Place:
        """Where its objects are."""
        return self.cluster_uid, self.namespace


@dataclass(frozen=True, slots=True)
class Grants:
    """What a user may see now.

    Attributes:
        everything: all namespaces of all clusters.
        environments: by place; for a user with `everything` they only give names to places.
        job_scopes: names at and below which jobs may be seen.
    """

    everything: bool = False
    environments: Mapping[Place, Environment] = field(default_factory=dict)
    job_scopes: frozenset[str] = frozenset()

    def sees_job(self, target: str) -> bool:
        """Whether a job on a target may be seen."""
        return self.everything or any(target == scope or target.startswith(scope + "/") for scope in self.job_scopes)


@dataclass(frozen=True, slots=True)
class Selector:
    """What a subscriber asked for.

    Attributes:
        scopes: tenants, projects or environments; empty for all.
        resources: (resource, group) pairs; empty for all.
        cluster: `clusters/{cluster}`; empty for all.
    """

    scopes: tuple[str, ...] = ()
    resources: frozenset[tuple[str, str]] = frozenset()
    cluster: str = ""

    def wants(self, environment: Environment) -> bool:
        """Whether an environment is asked for."""
        if self.cluster and environment.cluster != self.cluster:
            return False
        return not self.scopes or any(environment.name == s or environment.name.startswith(s + "/") for s in self.scopes)

    def wants_kind(self, resource: str, group: str) -> bool:
        """Whether a kind is asked for."""
        return not self.resources or (resource, group) in self.resources

    def lost(self, before: Grants, after: Grants) -> list[str]:
        """Names of the environments that were seen before and are not any more."""
        if after.everything:
            return []
        gone = [e for place, e in before.environments.items() if place not in after.environments and self.wants(e)]
        return sorted(e.name for e in gone)

    def gained(self, before: Grants, after: Grants) -> list[Environment]:
        """Environments that are seen now and were not before."""
        if before.everything:
            return []
        return [e for place, e in after.environments.items() if place not in before.environments and self.wants(e)]


def resources(names: Iterable[str]) -> frozenset[tuple[str, str]]:
    """(resource, group) pairs of `deployments.apps` and `pods`."""
    pairs = (name.partition(".") for name in names)
    return frozenset((resource, group) for resource, _, group in pairs)
