"""The hub of one replica: takes observed changes, finds who may see them, puts them into their queues.

A change costs one look-up by place, not one per subscriber. Rights come from hub tables through the grants, never from
an object's labels: a hostile cluster can name what it likes.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import Histogram

from kubegems.agent.v1.events_pb2 import ObservedChange, Watermark
from kubegems.jobs.v1 import events_pb2 as jobs_pb2
from kubegems.messages.v1 import event_pb2, events_pb2
from kubegems.messages.v1.event_pb2 import Event
from services.msgbus import told
from services.msgbus.domain import Environment, Grants, Kind, Place, Selection, shared
from services.msgbus.subscriber import Item, Queue, Shared
from services.msgbus.view import KindKey, Seen, View

_REVOKED = Histogram(
    "kubegems_msgbus_revocation_seconds", "From the gateway's notice of a change of rights to its being in force on a stream.",
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
)  # fmt: skip


@dataclass(eq=False, slots=True)
class Subscription:
    """One open stream.

    Attributes:
        user: whose.
        selection: what it asks for.
        queue: what waits for it.
        id: its name among all replicas'.
        grants: what it may see.
        heads: of resume tokens, for as long as it may see and asks for the same: there may be thousands of environments in them.
        reach: kinds, and uids of the clusters, that changes may come of; equal for many.
    """

    user: str
    selection: Selection
    queue: Queue
    id: str = ""
    grants: Grants = field(default_factory=Grants)
    heads: tuple[bytes, ...] | None = None
    reach: tuple[frozenset[Kind], frozenset[str]] = (frozenset(), frozenset())

    def wanted(self, uid: str, kind: KindKey) -> bool:
        """Whether changes of a kind of a cluster may come at all."""
        kinds, uids = self.reach
        return (kind[1], kind[0]) in kinds and (self.grants.everything or uid in uids)


class Hub:
    """Who listens to what."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._by_place: dict[Place, set[Subscription]] = defaultdict(set)
        self._everywhere: set[Subscription] = set()
        self._by_audience: dict[str, set[Subscription]] = defaultdict(set)
        self._jobs: set[Subscription] = set()
        self._curious: set[Subscription] = set()
        self._all: set[Subscription] = set()
        self._ids: dict[str, Subscription] = {}
        self._users: Counter[str] = Counter()
        self.clusters: dict[str, str] = {}  # uid → `clusters/{cluster}`

    def __len__(self) -> int:
        return len(self._all)

    def count(self, user: str) -> int:
        """Open streams of a user."""
        return self._users[user]

    def waiting(self) -> tuple[int, int]:
        """Events that wait: in all queues, and in the longest."""
        lengths = [len(s.queue) for s in self._all]
        return sum(lengths), max(lengths, default=0)

    def find(self, id_: str) -> Subscription | None:
        """The open stream of a name."""
        return self._ids.get(id_)

    def open(self, subscription: Subscription) -> None:
        """Counts a stream; nothing is served yet."""
        self._users[subscription.user] += 1
        self._ids[subscription.id] = subscription

    def add(self, subscription: Subscription) -> None:
        """Starts to serve a subscription."""
        self._all.add(subscription)
        self._index(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Ends a subscription."""
        if self._ids.pop(subscription.id, None) is not None:
            self._users[subscription.user] -= 1
            if not self._users[subscription.user]:
                del self._users[subscription.user]
        self._all.discard(subscription)
        self._unindex(subscription)

    def regrant(self, subscription: Subscription, grants: Grants) -> list[Environment]:
        """Puts new rights in force: lost scopes are told and cut. The environments gained."""
        before, selection = subscription.grants, subscription.selection
        if before == grants:
            return []
        self._change(subscription, grants, selection)
        subscription.queue.revoke(grants)
        for name in selection.lost(before, grants):
            subscription.queue.put(("revoked", name), Item(Event(kind=Event.SCOPE_REVOKED, scope=name)))
        if subscription in self._all:
            if selection.loses_rest(before, grants):  # what ended as an environment meanwhile is known by a name that nobody can revoke
                subscription.queue.resync("", "RIGHTS_CHANGED")
            if selection.jobs and before.jobs != grants.jobs:
                subscription.queue.retell(Event.JOB, "jobs")
            if selection.notices and before.audiences != grants.audiences:
                subscription.queue.retell(Event.NOTICE, "inbox")
        if grants.changed and subscription in self._all:
            _REVOKED.observe(max(0.0, time.time() - grants.changed))
        return selection.gained(before, grants)

    def reselect(self, subscription: Subscription, selection: Selection) -> None:
        """Serves other selectors from now on."""
        self._change(subscription, subscription.grants, selection)

    def _change(self, subscription: Subscription, grants: Grants, selection: Selection) -> None:
        self._unindex(subscription)
        subscription.grants, subscription.selection = grants, selection
        subscription.heads = None
        uids = frozenset(("",)) if grants.everything else frozenset(place[0] for place in grants.environments)
        subscription.reach = shared((selection.kinds, uids))
        if subscription in self._all:
            self._index(subscription)

    def _index(self, subscription: Subscription) -> None:
        grants, selection = subscription.grants, subscription.selection
        if grants.everything and selection.beyond_scopes:
            self._everywhere.add(subscription)
        else:
            for place, environment in grants.environments.items():
                if selection.wants(environment):
                    self._by_place[place].add(subscription)
        if selection.notices:
            for audience in grants.audiences:
                self._by_audience[audience].add(subscription)
        if selection.jobs:
            self._jobs.add(subscription)
        if selection.extra:
            self._curious.add(subscription)

    def _unindex(self, subscription: Subscription) -> None:
        for indexed in (self._everywhere, self._jobs, self._curious):
            indexed.discard(subscription)
        _drop(self._by_place, subscription.grants.environments, subscription)
        _drop(self._by_audience, subscription.grants.audiences, subscription)

    def take(self, cluster_uid: str, change: ObservedChange, *, shown: bool = True) -> bool:
        """Takes a change from the bus; True when something before it is missing."""
        taken = self.view.take(cluster_uid, change, shown=shown)
        if taken.gap:
            self.resync(cluster_uid, "GAP")
        if taken.full:
            self.resync(cluster_uid, "TOO_MANY_OBJECTS")
        for seen in taken.seen:
            self.show(seen)
        return taken.gap

    def mark(self, cluster_uid: str, mark: Watermark, *, fresh: bool = True) -> bool:
        """Takes a watermark, `fresh` when it was made just now; True when something before it is missing."""
        marked = self.view.mark(cluster_uid, mark, fresh=fresh)
        if marked.gap:
            self.resync(cluster_uid, "GAP")
        gone = {(resource, group) for group, resource in marked.gone}
        if gone:
            for subscription in self._concerned(cluster_uid):
                if gone & subscription.selection.kinds:
                    subscription.queue.resync(self.clusters.get(cluster_uid, ""), "NOT_OBSERVED")
        for subscription in self._curious:
            subscription.queue.wake()  # a snapshot may wait for a kind
        return marked.gap

    def show(self, seen: Seen) -> None:
        """Puts a change into the queues of those who may see it."""
        place = (seen.cluster_uid, seen.change.namespace)
        listeners = self._by_place.get(place, _NOBODY) if seen.change.namespace else _NOBODY
        shared: dict[str, Shared] = {}
        for subscription in (*listeners, *self._everywhere):
            self.send(subscription, seen, shared=shared)

    def send(self, subscription: Subscription, seen: Seen, *, shared: dict[str, Shared] | None = None) -> None:
        """Puts a change into one queue, if it was asked for."""
        item = self.item(subscription, seen, shared=shared)
        if item is not None:
            change = seen.change
            subscription.queue.put((seen.cluster_uid, change.group, change.resource, change.namespace, change.name), item)

    def item(self, subscription: Subscription, seen: Seen, *, shared: dict[str, Shared] | None = None) -> Item | None:
        """What a subscriber is told of a change; None when it may not see it or did not ask for it.

        Args:
            subscription: who.
            seen: the change.
            shared: the events made of the same change so far, by environment.
        """
        place = (seen.cluster_uid, seen.change.namespace)
        environment = subscription.grants.environments.get(place) if seen.change.namespace else None
        if environment is None and not subscription.grants.everything:
            return None
        name = environment.name if environment else ""
        cluster = self.clusters.get(seen.cluster_uid, "")
        verb, bodies = told.pick(subscription.selection, seen, cluster, name)
        if verb is None:
            return None
        made = shared.get(name) if shared is not None else None
        if made is None:
            made = Shared(Event(kind=Event.CHANGE, change=told.change(seen, cluster, name)))
            if shared is not None:
                shared[name] = made
        return Item(made.event, place, None if verb == made.event.change.verb else verb, bodies=bodies, shared=made)

    def present(self, subscription: Subscription, environments: Iterable[Environment] | None = None) -> Iterator[Seen]:
        """What is there now, in some environments or in the whole subscription."""
        if environments is None and subscription in self._everywhere:
            for uid in self.view.clusters():
                for change in self.view.objects(uid):
                    yield Seen(uid, change, None)
            return
        if environments is None:
            environments = [e for e in subscription.grants.environments.values() if subscription.selection.wants(e)]
        for e in environments:
            for change in self.view.objects(e.cluster_uid, e.namespace):
                yield Seen(e.cluster_uid, change, None)

    def missing(self, subscription: Subscription) -> list[str]:
        """Clusters on which a named kind is not known whole yet."""
        found = []
        for uid in self._reach(subscription):
            kinds = [(group, resource) for resource, group in subscription.selection.named]
            if any(not self.view.listed(uid, kind) for kind in kinds):
                found.append(uid)
        return found

    def hopeless(self, subscription: Subscription, uid: str) -> bool:
        """Whether waiting for what is missing on a cluster is of no use: it is not heard of, or the agent may not watch it."""
        age = self.view.age(uid)
        if age is None or age > 15.0:  # noqa: PLR2004 -- three watermarks
            return True
        kinds = [(group, resource) for resource, group in subscription.selection.named]
        return all(self.view.listed(uid, kind) or self.view.problem(uid, kind) for kind in kinds)

    def _reach(self, subscription: Subscription) -> set[str]:
        """Uids of the clusters that a subscription sees something of."""
        wanted = {e.cluster_uid for e in subscription.grants.environments.values() if subscription.selection.wants(e)}
        if subscription in self._everywhere:
            asked = {s.cluster for s in subscription.selection.selectors}
            wanted |= {uid for uid, name in self.clusters.items() if "" in asked or name in asked}
        return wanted

    def interest(self) -> dict[str, list[Kind]]:
        """Kinds beyond the base set that are watched, by cluster uid; what most users want first."""
        wanted: dict[str, dict[Kind, set[str]]] = {}
        for subscription in self._curious:
            for uid in self._reach(subscription):
                kinds = wanted.setdefault(uid, {})
                for kind in subscription.selection.extra:
                    kinds.setdefault(kind, set()).add(subscription.user)
        return {uid: sorted(kinds, key=lambda kind: (-len(kinds[kind]), kind)) for uid, kinds in wanted.items()}

    def resync(self, cluster_uid: str, reason: str) -> None:
        """Tells everyone who sees something of a cluster that its events are not whole."""
        cluster = self.clusters.get(cluster_uid, "")
        for subscription in self._concerned(cluster_uid):
            subscription.queue.resync(cluster, reason)

    def _concerned(self, cluster_uid: str) -> set[Subscription]:
        told = set(self._everywhere)
        for (uid, _), listeners in self._by_place.items():
            if uid == cluster_uid:
                told |= listeners
        return told

    def news_lost(self) -> None:
        """Tells those who follow jobs or messages that some may be missing: list them again."""
        for subscription in self._jobs:
            subscription.queue.resync("jobs", "GAP")
        for subscription in self._all:
            if subscription.selection.notices:
                subscription.queue.resync("inbox", "GAP")

    def job_moved(self, moved: jobs_pb2.JobMoved) -> None:
        """Shows a job's progress to those who may read its target's jobs, as the API does: who started it is not asked."""
        progress = event_pb2.JobProgress(
            name=moved.name, state=moved.state, percent=moved.percent, message=moved.message, step=moved.step, log_lines=moved.log_lines,
            kind=moved.kind, attempt=moved.attempt, cancel_requested=moved.cancel_requested,
        )  # fmt: skip
        event = Shared(Event(kind=Event.JOB, job=progress))
        for subscription in self._jobs:
            if subscription.grants.sees_job(moved.target):
                subscription.queue.put(("job", moved.name), Item(event.event, shared=event))

    def notice(self, stored: events_pb2.NoticeStored) -> None:
        """Shows a message to those whom it addresses."""
        told: set[Subscription] = set()
        for audience in stored.audiences:
            told |= self._by_audience.get(audience, set())
        for subscription in told:
            event = Event(kind=Event.NOTICE, notice=stored.message)
            event.notice.name = f"users/{subscription.user}/inbox/{stored.id}"
            subscription.queue.put(("notice", stored.id), Item(event))


K = TypeVar("K")


_NOBODY: frozenset[Subscription] = frozenset()


def _drop(index: dict[K, set[Subscription]], keys: Iterable[K], subscription: Subscription) -> None:
    for key in keys:
        listeners = index.get(key)
        if listeners is not None:
            listeners.discard(subscription)
            if not listeners:
                del index[key]
