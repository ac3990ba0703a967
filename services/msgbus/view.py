"""The view: the newest known change of every object, per cluster, and the recent past for those who resume.

Counters of a kind must rise by one within an epoch; a gap makes the kind stale until the agent lists it afresh
(LISTING … LISTED). Deliveries come twice or late from a broker: an older or equal counter is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kubegems.agent.v1 import events_pb2
from kubegems.agent.v1.events_pb2 import ObservedChange

Key = tuple[str, str, str, str]  # (group, resource, namespace, name)
KindKey = tuple[str, str]  # (group, resource)
RECENT = 20_000  # changes kept for those who resume; a longer absence gets RESYNC


@dataclass(slots=True)
class KindState:
    """How far one kind of one cluster is."""

    epoch: str = ""
    counter: int = 0
    listing: set[Key] | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A change of one cluster, as the view took it."""

    cluster_uid: str
    change: ObservedChange


@dataclass(slots=True)
class Taken:
    """What came of one message."""

    changes: list[ObservedChange] = field(default_factory=list)
    gap: bool = False


class View:
    """All clusters' objects."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, ObservedChange]] = {}
        self._kinds: dict[tuple[str, KindKey], KindState] = {}
        self._recent: deque[Seen] = deque(maxlen=RECENT)

    def take(self, cluster_uid: str, change: ObservedChange) -> Taken:
        """Takes one message; what subscribers should see of it, and whether something before it is missing."""
        state = self._kinds.setdefault((cluster_uid, (change.group, change.resource)), KindState())
        taken = Taken()
        if change.epoch == state.epoch and change.counter <= state.counter:
            return taken
        first = change.epoch != state.epoch
        if change.verb != events_pb2.ObservedChange.LISTING and (first or change.counter != state.counter + 1) and not state.stale:
            state.stale = taken.gap = True
        state.epoch, state.counter = change.epoch, change.counter
        taken.changes = self._apply(cluster_uid, state, change)
        for shown in taken.changes:
            self._recent.append(Seen(cluster_uid, shown))
        return taken

    def _apply(self, cluster_uid: str, state: KindState, change: ObservedChange) -> list[ObservedChange]:
        objects = self._objects.setdefault(cluster_uid, {})
        if change.verb == ObservedChange.LISTING:
            state.listing = set()
            return []
        if change.verb == ObservedChange.LISTED:
            return self._end_listing(objects, state, change)
        key = (change.group, change.resource, change.namespace, change.name)
        if change.verb == ObservedChange.DELETED:
            if state.listing is not None:
                state.listing.discard(key)
            return [change] if objects.pop(key, None) is not None else []
        if state.listing is not None:
            state.listing.add(key)
        known = objects.get(key)
        objects[key] = change
        if known is not None and known.uid == change.uid and known.resource_version == change.resource_version:
            return []
        return [change]

    def _end_listing(self, objects: dict[Key, ObservedChange], state: KindState, end: ObservedChange) -> list[ObservedChange]:
        listed, state.listing = state.listing, None
        if listed is None:
            return []  # the beginning was lost; the kind stays stale until the next list
        state.stale = False
        gone = [key for key in objects if key[:2] == (end.group, end.resource) and key not in listed]
        return [_deleted(objects.pop(key), end) for key in gone]

    def objects(self, cluster_uid: str, namespace: str | None = None) -> Iterator[ObservedChange]:
        """What is there now, in a namespace or in the whole cluster."""
        for key, change in self._objects.get(cluster_uid, {}).items():
            if namespace is None or key[2] == namespace:
                yield change

    def clusters(self) -> list[str]:
        """Uids of the clusters that were heard of."""
        return list(self._objects)

    def forget(self, cluster_uid: str) -> None:
        """Drops a cluster that was removed."""
        self._objects.pop(cluster_uid, None)
        for key in [key for key in self._kinds if key[0] == cluster_uid]:
            del self._kinds[key]

    def vector(self) -> dict[str, list[str | int]]:
        """How far every kind is: `{cluster/group/resource: [epoch, counter]}`."""
        return {f"{uid}/{group}/{resource}": [state.epoch, state.counter] for (uid, (group, resource)), state in self._kinds.items()}

    def since(self, vector: dict[str, list[str | int]]) -> list[Seen] | None:
        """The changes after a vector, or None when the recent past does not reach back so far."""
        missing = []
        oldest: dict[str, int] = {}
        for seen in self._recent:
            name = f"{seen.cluster_uid}/{seen.change.group}/{seen.change.resource}"
            epoch, counter = vector.get(name, ["", 0])
            if seen.change.epoch != epoch:
                return None
            oldest.setdefault(name, seen.change.counter)
            if seen.change.counter > int(counter):
                missing.append(seen)
        for name, (epoch, counter) in self.vector().items():
            then_epoch, then_counter = vector.get(name, ["", 0])
            if epoch != then_epoch:
                return None
            covered = oldest.get(name, int(counter) + 1) <= int(then_counter) + 1
            if int(counter) > int(then_counter) and not covered:
                return None
        return missing


def _deleted(change: ObservedChange, end: ObservedChange) -> ObservedChange:
    gone = ObservedChange()
    gone.CopyFrom(change)
    gone.verb = ObservedChange.DELETED
    gone.epoch, gone.counter = end.epoch, end.counter
    gone.observe_time.CopyFrom(end.observe_time)
    return gone
