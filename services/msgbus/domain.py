"""Pure rules of push: who sees what, and the words for it. No wire, no broker."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar, cast

from libs.faults import Exhausted, NotFound, Unauthenticated, Unavailable
from libs.kube.observed import BASE

T = TypeVar("T", bound=Hashable)
Place = tuple[str, str]  # (cluster uid, namespace)
Kind = tuple[str, str]  # (resource, group)
BASE_KINDS: frozenset[Kind] = frozenset((kind.plural, kind.group) for kind in BASE)
NEVER: Kind = ("secrets", "")  # not observed, whoever asks


class TooManyStreams(Exhausted):
    """The user has as many subscriptions open as one replica allows."""

    reason = "TOO_MANY_STREAMS"


class NoSubscription(NotFound):
    """The stream is not open, or another user's."""

    reason = "SUBSCRIPTION_NOT_FOUND"


class SessionEnded(Unauthenticated):
    """The session or user that the stream belonged to has ended."""

    reason = "SESSION_ENDED"


class GrantsSilent(Unavailable):
    """The gateway has not confirmed the rights for too long; nothing may be sent any more."""

    reason = "RIGHTS_UNCONFIRMED"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where an environment runs.

    Attributes:
        place: where its objects are.
    """

    name: str
    cluster: str
    cluster_uid: str
    namespace: str
    place: Place = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", (self.cluster_uid, self.namespace))


@dataclass(frozen=True, slots=True)
class Grants:
    """What a user may see now.

    Attributes:
        everything: all namespaces of all clusters.
        environments: by place; for a user with `everything` they only give names to places.
        job_scopes: names at and below which jobs may be seen.
        audiences: whose messages the user gets.
        changed: seconds since the epoch at which the gateway noticed the change; 0 when it did not say.
    """

    everything: bool = False
    environments: Mapping[Place, Environment] = field(default_factory=dict)
    job_scopes: frozenset[str] = frozenset()
    audiences: frozenset[str] = frozenset()
    changed: float = field(default=0.0, compare=False)

    def sees(self, place: Place) -> bool:
        """Whether objects at a place may be seen."""
        return self.everything or place in self.environments

    @property
    def jobs(self) -> tuple[bool, frozenset[str]]:
        """Whose equality means that the same jobs may be seen."""
        return self.everything, self.job_scopes

    def sees_job(self, target: str) -> bool:
        """Whether a job on a target may be seen; the empty scope is the platform, which is above all."""
        scopes = self.job_scopes
        return self.everything or "" in scopes or any(target == scope or target.startswith(scope + "/") for scope in scopes)


@dataclass(frozen=True, slots=True)
class Selector:
    """What a subscriber asked for; what is empty does not narrow.

    Attributes:
        scopes: tenants, projects or environments.
        resources: kinds; empty for the base set.
        cluster: `clusters/{cluster}`.
        namespace: of the object.
        object: its name.
        labels: that it must carry.
        bodies: whether its JSON is wanted.
    """

    scopes: tuple[str, ...] = ()
    resources: frozenset[Kind] = frozenset()
    cluster: str = ""
    namespace: str = ""
    object: str = ""
    labels: frozenset[tuple[str, str]] = frozenset()
    bodies: bool = False

    def wants(self, environment: Environment) -> bool:
        """Whether an environment is asked for."""
        if (self.cluster and environment.cluster != self.cluster) or (self.namespace and environment.namespace != self.namespace):
            return False
        return self.in_scope(environment.name)

    def in_scope(self, environment: str) -> bool:
        """Whether the name of an environment, or `""` for none, lies in the scopes."""
        return not self.scopes or any(environment == s or environment.startswith(s + "/") for s in self.scopes)

    def wants_kind(self, resource: str, group: str) -> bool:
        """Whether a kind is asked for."""
        return (resource, group) in (self.resources or BASE_KINDS)

    def fits(self, cluster: str, namespace: str, name: str) -> bool:
        """Whether an object's place and name are as asked."""
        pairs = ((self.cluster, cluster), (self.namespace, namespace), (self.object, name))
        return all(asked in ("", found) for asked, found in pairs)

    def carries(self, labels: Mapping[str, str]) -> bool:
        """Whether an object's labels are as asked."""
        return all(labels.get(name) == value for name, value in self.labels)


@dataclass(frozen=True, slots=True)
class Selection:
    """All that one stream asks for.

    Attributes:
        selectors: a change is sent when one of them picks it.
        jobs: whether the progress of jobs is wanted.
        notices: whether inbox messages and announcements are.
    """

    selectors: tuple[Selector, ...] = (Selector(),)
    jobs: bool = False
    notices: bool = False

    def wants(self, environment: Environment) -> bool:
        """Whether an environment is asked for."""
        return any(s.wants(environment) for s in self.selectors)

    @property
    def beyond_scopes(self) -> bool:
        """Whether something is asked for that no scope narrows."""
        return any(not s.scopes for s in self.selectors)

    @property
    def named(self) -> frozenset[Kind]:
        """Kinds named one by one."""
        return frozenset(kind for s in self.selectors for kind in s.resources)

    @property
    def extra(self) -> frozenset[Kind]:
        """Named kinds that agents observe only when asked."""
        return self.named - BASE_KINDS - {NEVER}

    @property
    def kinds(self) -> frozenset[Kind]:
        """All kinds that may come."""
        return _kinds(self.selectors)

    def lost(self, before: Grants, after: Grants) -> list[str]:
        """Names of the environments that were seen before and are not any more; `""` for what lies outside of environments.

        An environment that ended is lost to one who sees everything too, where it was asked for by its scope: what is
        left of it lies in no scope any more, so that nobody could tell of its end.
        """
        gone = sorted(
            e.name for place, e in before.environments.items() if after.environments.get(place) != e and self._tells(e, after.everything)
        )
        return ["", *gone] if self.loses_rest(before, after) else gone

    def loses_rest(self, before: Grants, after: Grants) -> bool:
        """Whether what lies outside of environments was seen before and is not any more."""
        return before.everything and not after.everything and self.beyond_scopes

    def gained(self, before: Grants, after: Grants) -> list[Environment]:
        """Environments that are seen now and were not before, be it only by their names."""
        everything = before.everything and after.everything
        return [e for place, e in after.environments.items() if before.environments.get(place) != e and self._tells(e, everything)]

    def _tells(self, environment: Environment, everything: bool) -> bool:  # noqa: FBT001 -- private
        """Whether an environment is asked for, and by its scope if all else is seen anyhow."""
        return any(s.wants(environment) for s in self.selectors if s.scopes or not everything)

    def seen(self, grants: Grants) -> dict[str, Place]:
        """What rights show of what is asked for: environments by name, and `""` for all that lies outside of them."""
        if grants.everything and not any(s.scopes for s in self.selectors):
            return {"": ("", "")}
        found = {e.name: place for place, e in grants.environments.items() if self._tells(e, grants.everything)}
        return found | {"": ("", "")} if grants.everything and self.beyond_scopes else found


def shared(value: T) -> T:
    """One object for all equal ones that are in use: thousands of streams ask for, and see, the same."""
    return cast("T", _shared(value))


@lru_cache(maxsize=16_384)
def _shared(value: Hashable) -> Hashable:
    return value


@lru_cache(maxsize=4096)
def _kinds(selectors: tuple[Selector, ...]) -> frozenset[Kind]:
    return frozenset().union(*((s.resources or BASE_KINDS) for s in selectors))


def resources(names: Iterable[str]) -> frozenset[Kind]:
    """Kinds of `deployments.apps` and `pods`."""
    pairs = (name.partition(".") for name in names)
    return frozenset((resource, group) for resource, _, group in pairs)


def kind_keys(kinds: Iterable[Kind]) -> Iterator[str]:
    """`{resource}..{group}`, as agents are asked for kinds, in the version that their API server prefers."""
    return (f"{resource}..{group}" for resource, group in kinds)
