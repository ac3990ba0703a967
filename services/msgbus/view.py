"""The view: the newest known change of every object, per cluster, and the recent past for those who resume.

Counters of a kind must rise by one within an epoch; a gap makes the kind stale until the agent has listed it afresh
(LISTING … LISTED) without another gap in between. Watermarks find a gap at the very end, where no later change would
tell of it. Deliveries come twice or late from a broker: an older or equal counter is dropped.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kubegems.agent.v1.events_pb2 import ObservedChange, Watermark

Key = tuple[str, str, str, str]  # (group, resource, namespace, name)
KindKey = tuple[str, str]  # (group, resource)
RECENT = 20_000  # changes kept for those who resume; a longer absence gets RESYNC
MOST_OBJECTS = 200_000  # of one cluster
MOST_BYTES = 256 * 1024 * 1024  # of one cluster's objects, as they came
MOST_KINDS = 1024  # of one cluster
_RECENT_BYTES = 128 * 1024 * 1024
Vector = dict[str, list[str | int]]


@dataclass(frozen=True, slots=True)
class Seen:
    """A change as the view took it, and what the object was before."""

    cluster_uid: str
    change: ObservedChange
    before: ObservedChange | None

    @property
    def size(self) -> int:
        """Bytes that are kept for it."""
        return self.change.ByteSize() + (self.before.ByteSize() if self.before is not None else 0)


@dataclass(slots=True)
class KindState:
    """How far one kind of one cluster is.

    Attributes:
        epoch: the agent's start.
        counter: last change taken.
        listing: keys listed so far while a list is under way.
        stale: something is missing.
        listed: a whole list was taken once.
        floor: counters above it are all in `recent`.
        keys: the kind's objects.
        recent: changes, oldest first.
        problem: why the agent cannot watch the kind.
    """

    epoch: str = ""
    counter: int = 0
    listing: set[Key] | None = None
    stale: bool = False
    listed: bool = False
    floor: int = 0
    keys: set[Key] = field(default_factory=set)
    recent: deque[Seen] = field(default_factory=deque)
    problem: str = ""


@dataclass(slots=True)
class Taken:
    """What came of one message.

    Attributes:
        seen: what subscribers should be told of.
        gap: something before it is missing.
        full: the cluster has more objects than are kept.
    """

    seen: list[Seen] = field(default_factory=list)
    gap: bool = False
    full: bool = False


@dataclass(slots=True)
class Marked:
    """What came of a watermark: whether something is missing, and which kinds are not observed any more."""

    gap: bool = False
    gone: list[KindKey] = field(default_factory=list)


class View:
    """All clusters' objects."""

    def __init__(
        self, *, most_objects: int = MOST_OBJECTS, most_bytes: int = MOST_BYTES, recent: int = RECENT, recent_bytes: int = _RECENT_BYTES
    ) -> None:  # fmt: skip
        self._objects: dict[str, dict[str, dict[Key, ObservedChange]]] = {}  # cluster uid → namespace → objects
        self._counts: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._kinds: dict[str, dict[KindKey, KindState]] = {}
        self._order: deque[tuple[KindState, Seen]] = deque()
        self._most_objects, self._most_bytes = most_objects, most_bytes
        self._most_recent, self._most_recent_bytes, self._recent_bytes = recent, recent_bytes, 0
        self._heard: dict[str, float] = {}
        self._marked: set[str] = set()
        self._full: set[str] = set()
        self.version = 0

    def take(self, cluster_uid: str, change: ObservedChange, *, shown: bool = True) -> Taken:
        """Takes one message in.

        Args:
            cluster_uid: whose.
            change: the message.
            shown: False for one whose content cannot be used: it counts, and no more.
        """
        self._heard[cluster_uid] = time.monotonic()
        taken = Taken()
        state = self._kind(cluster_uid, (change.group, change.resource))
        if state is None:
            return taken
        if change.epoch == state.epoch and change.counter <= state.counter:
            return taken
        if change.epoch != state.epoch or change.counter != state.counter + 1:
            state.listing, state.floor = None, change.counter
            state.recent.clear()
            if change.verb != ObservedChange.LISTING and not state.stale:
                state.stale = taken.gap = True
        state.epoch, state.counter = change.epoch, change.counter
        self.version += 1
        taken.seen = self._apply(cluster_uid, state, change, taken) if shown else []
        for seen in taken.seen:
            self._remember(state, seen)
        return taken

    def _kind(self, uid: str, kind: KindKey) -> KindState | None:
        """How far a kind is; None for one too many."""
        kinds = self._kinds.setdefault(uid, {})
        found = kinds.get(kind)
        if found is None and len(kinds) < MOST_KINDS:
            found = kinds[kind] = KindState()
        return found

    def _remember(self, state: KindState, seen: Seen) -> None:
        state.recent.append(seen)
        self._order.append((state, seen))
        self._recent_bytes += seen.size
        while len(self._order) > self._most_recent or self._recent_bytes > self._most_recent_bytes:
            oldest, first = self._order.popleft()
            self._recent_bytes -= first.size
            if oldest.recent and oldest.recent[0] is first:
                oldest.recent.popleft()
                oldest.floor = max(oldest.floor, first.change.counter)

    def _apply(self, uid: str, state: KindState, change: ObservedChange, taken: Taken) -> list[Seen]:
        if change.verb == ObservedChange.LISTING:
            state.listing = set()
            return []
        if change.verb == ObservedChange.LISTED:
            return self._end_listing(uid, state, change)
        key = (change.group, change.resource, change.namespace, change.name)
        if change.verb == ObservedChange.DELETED:
            known = self._drop(uid, state, key)
            return [Seen(uid, change, known)] if known is not None else []
        return self._put(uid, state, key, change, taken)

    def _put(self, uid: str, state: KindState, key: Key, change: ObservedChange, taken: Taken) -> list[Seen]:
        known = self._objects.get(uid, {}).get(change.namespace, {}).get(key)
        size = self._bytes.get(uid, 0) + change.ByteSize() - (known.ByteSize() if known is not None else 0)
        count = self._counts.get(uid, 0) + (known is None)
        if count > self._most_objects or size > self._most_bytes:
            self._drop(uid, state, key)
            taken.full = uid not in self._full
            self._full.add(uid)
            return []
        self._counts[uid], self._bytes[uid] = count, size
        state.keys.add(key)
        if state.listing is not None:
            state.listing.add(key)
        self._objects.setdefault(uid, {}).setdefault(change.namespace, {})[key] = change
        if known is not None and known.uid == change.uid and known.resource_version == change.resource_version:
            return []
        return [Seen(uid, change, known)]

    def _drop(self, uid: str, state: KindState, key: Key) -> ObservedChange | None:
        """Keeps an object no more, nor counts it among those listed."""
        if state.listing is not None:
            state.listing.discard(key)
        return self._pop(uid, state, key)

    def _pop(self, uid: str, state: KindState, key: Key) -> ObservedChange | None:
        place = self._objects.get(uid, {}).get(key[2], {})
        known = place.pop(key, None)
        if known is not None:
            state.keys.discard(key)
            self._counts[uid] -= 1
            self._bytes[uid] -= known.ByteSize()
            self._full.discard(uid)
            if not place:
                self._objects[uid].pop(key[2], None)
        return known

    def _end_listing(self, uid: str, state: KindState, end: ObservedChange) -> list[Seen]:
        listed, state.listing = state.listing, None
        if listed is None:
            return []  # part of the list was lost; the kind stays stale until the next one
        state.stale, state.listed = False, True
        gone = [known for key in state.keys - listed if (known := self._pop(uid, state, key)) is not None]
        return [Seen(uid, _deleted(known, end), known) for known in gone]

    def mark(self, cluster_uid: str, mark: Watermark, *, fresh: bool = True) -> Marked:
        """Takes a watermark: what the agent has published and we have not read is missing. With a `fresh` one we have read all there is."""
        kinds = self._kinds.setdefault(cluster_uid, {})
        self._heard[cluster_uid] = time.monotonic()
        if fresh:
            self._marked.add(cluster_uid)
        marked, named = Marked(), set()
        for m in mark.marks:
            key = (m.group, m.resource)
            named.add(key)
            state = self._kind(cluster_uid, key)
            if state is None:
                continue
            state.problem = m.problem
            if m.counter and (state.epoch != mark.epoch or state.counter < m.counter):
                marked.gap = marked.gap or not state.stale
                state.stale, state.listing = True, None
                state.epoch, state.counter, state.floor = mark.epoch, m.counter, m.counter
                state.recent.clear()
        for key in set(kinds) - named:
            self._forget_kind(cluster_uid, key)
            marked.gone.append(key)
        self.version += bool(marked.gap or marked.gone)
        return marked

    def _forget_kind(self, uid: str, kind: KindKey) -> None:
        state = self._kinds[uid].pop(kind)
        for key in list(state.keys):
            self._pop(uid, state, key)
        state.recent.clear()

    def objects(self, cluster_uid: str, namespace: str | None = None) -> Iterator[ObservedChange]:
        """What is there now, in a namespace or in the whole cluster."""
        places = self._objects.get(cluster_uid, {})
        for place in places.values() if namespace is None else (places.get(namespace, {}),):
            yield from place.values()

    def clusters(self) -> list[str]:
        """Uids of the clusters that were heard of."""
        return list(self._kinds)

    def count(self, cluster_uid: str) -> int:
        """How many objects of a cluster are known."""
        return self._counts.get(cluster_uid, 0)

    def stale(self, cluster_uid: str) -> bool:
        """Whether something of a cluster is missing that a list must heal."""
        return any(state.stale for state in self._kinds.get(cluster_uid, {}).values())

    def marked(self, cluster_uid: str) -> bool:
        """Whether the cluster's own account of what there is has been read once."""
        return cluster_uid in self._marked

    def listed(self, cluster_uid: str, kind: KindKey) -> bool:
        """Whether a kind of a cluster is whole."""
        state = self._kinds.get(cluster_uid, {}).get(kind)
        return state is not None and state.listed and not state.stale

    def problem(self, cluster_uid: str, kind: KindKey) -> str:
        """Why the agent cannot watch a kind; empty when it can, or has not said."""
        state = self._kinds.get(cluster_uid, {}).get(kind)
        return state.problem if state is not None else ""

    def age(self, cluster_uid: str) -> float | None:
        """Seconds since a cluster was heard of; None for never."""
        heard = self._heard.get(cluster_uid)
        return None if heard is None else time.monotonic() - heard

    def forget(self, cluster_uid: str) -> None:
        """Drops a cluster that was removed."""
        for state in self._kinds.pop(cluster_uid, {}).values():
            state.recent.clear()
        self._objects.pop(cluster_uid, None)
        self._counts.pop(cluster_uid, None)
        self._bytes.pop(cluster_uid, None)
        self._heard.pop(cluster_uid, None)
        self._marked.discard(cluster_uid)
        self._full.discard(cluster_uid)

    def vector(self, wanted: Callable[[str, KindKey], bool] = lambda _uid, _kind: True) -> Vector:
        """How far every wanted kind is: `{cluster/group/resource: [epoch, counter]}`."""
        return {
            f"{uid}/{group}/{resource}": [state.epoch, state.counter]
            for uid, kinds in self._kinds.items()
            for (group, resource), state in kinds.items()
            if state.epoch and wanted(uid, (group, resource))
        }

    def since(self, vector: Vector, wanted: Callable[[str, KindKey], bool] = lambda _uid, _kind: True) -> tuple[list[Seen], set[str]]:
        """The changes after a vector, and the uids of the clusters whose past does not reach back so far."""
        missed: list[Seen] = []
        lost = {uid for uid, group, resource in (name.split("/") for name in vector) if self._unknown(uid, (group, resource), wanted)}
        for uid, kinds in self._kinds.items():
            for (group, resource), state in kinds.items():
                if not state.epoch or not wanted(uid, (group, resource)):
                    continue
                epoch, counter = vector.get(f"{uid}/{group}/{resource}", ["", 0])
                if state.stale or state.epoch != epoch or (state.counter > int(counter) and int(counter) < state.floor):
                    lost.add(uid)
                elif state.counter > int(counter):
                    start = bisect_right(state.recent, int(counter), key=lambda seen: seen.change.counter)
                    missed += [state.recent[i] for i in range(start, len(state.recent))]
        return [seen for seen in missed if seen.cluster_uid not in lost], lost

    def _unknown(self, uid: str, kind: KindKey, wanted: Callable[[str, KindKey], bool]) -> bool:
        """Whether a kind of a cluster was known once and is not now."""
        return uid not in self._kinds or (kind not in self._kinds[uid] and wanted(uid, kind))


def _deleted(change: ObservedChange, end: ObservedChange) -> ObservedChange:
    gone = ObservedChange()
    gone.CopyFrom(change)
    gone.verb = ObservedChange.DELETED
    gone.epoch, gone.counter = end.epoch, end.counter
    gone.observe_time.CopyFrom(end.observe_time)
    return gone
