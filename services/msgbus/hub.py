"""The hub of one replica: takes observed changes, finds who may see them, puts them into their queues.

A change costs one look-up by place, not one per subscriber. Rights come from hub tables through the grants, never from
an object's labels: a hostile cluster can name what it likes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.jobs.v1 import events_pb2 as jobs_pb2
from kubegems.messages.v1 import event_pb2
from kubegems.messages.v1.event_pb2 import Event
from services.msgbus.domain import Environment, Grants, Place, Selector
from services.msgbus.subscriber import Queue
from services.msgbus.view import View

_VERBS = {
    ObservedChange.ADDED: event_pb2.Change.ADDED,
    ObservedChange.MODIFIED: event_pb2.Change.MODIFIED,
    ObservedChange.DELETED: event_pb2.Change.DELETED,
}


@dataclass(eq=False, slots=True)
class Subscription:
    """One open stream."""

    user: str
    selector: Selector
    queue: Queue
    jobs: bool = False
    grants: Grants = field(default_factory=Grants)

    def environment(self, place: Place) -> Environment | None:
        """The environment at a place, when the subscriber may see it and asked for it."""
        found = self.grants.environments.get(place)
        return found if found is not None and self.selector.wants(found) else None


class Hub:
    """Who listens to what."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._by_place: dict[Place, set[Subscription]] = defaultdict(set)
        self._everywhere: set[Subscription] = set()
        self._all: set[Subscription] = set()
        self.clusters: dict[str, str] = {}  # uid → `clusters/{cluster}`

    def __len__(self) -> int:
        return len(self._all)

    def count(self, user: str) -> int:
        """Open streams of a user."""
        return sum(1 for s in self._all if s.user == user)

    def add(self, subscription: Subscription) -> None:
        """Starts to serve a subscription."""
        self._all.add(subscription)
        self._index(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Ends a subscription."""
        self._all.discard(subscription)
        self._unindex(subscription)

    def regrant(self, subscription: Subscription, grants: Grants) -> list[Environment]:
        """Puts new rights in force: lost scopes are told and cut. The environments gained."""
        before = subscription.grants
        self._unindex(subscription)
        subscription.grants = grants
        if subscription in self._all:
            self._index(subscription)
        for name in subscription.selector.lost(before, grants):
            subscription.queue.drop_scope(name)
            subscription.queue.put(("revoked", name), Event(kind=Event.SCOPE_REVOKED, scope=name))
        return subscription.selector.gained(before, grants)

    def _index(self, subscription: Subscription) -> None:
        if subscription.grants.everything and not subscription.selector.scopes:
            self._everywhere.add(subscription)
            return
        for place, environment in subscription.grants.environments.items():
            if subscription.selector.wants(environment):
                self._by_place[place].add(subscription)

    def _unindex(self, subscription: Subscription) -> None:
        self._everywhere.discard(subscription)
        for place in subscription.grants.environments:
            listeners = self._by_place.get(place)
            if listeners is not None:
                listeners.discard(subscription)
                if not listeners:
                    del self._by_place[place]

    def take(self, cluster_uid: str, change: ObservedChange) -> bool:
        """Takes a change from the bus; True when something before it is missing."""
        taken = self.view.take(cluster_uid, change)
        if taken.gap:
            self.resync(cluster_uid, "GAP")
        for shown in taken.changes:
            self.show(cluster_uid, shown)
        return taken.gap

    def show(self, cluster_uid: str, change: ObservedChange) -> None:
        """Puts a change into the queues of those who may see it."""
        listeners = self._by_place.get((cluster_uid, change.namespace), set()) if change.namespace else set()
        for subscription in (*listeners, *self._everywhere):
            self.send(subscription, cluster_uid, change)

    def send(self, subscription: Subscription, cluster_uid: str, change: ObservedChange) -> None:
        """Puts a change into one queue, if it was asked for."""
        event = self.event(subscription, cluster_uid, change)
        if event is not None:
            subscription.queue.put((cluster_uid, change.group, change.resource, change.namespace, change.name), event)

    def event(self, subscription: Subscription, cluster_uid: str, change: ObservedChange) -> Event | None:
        """What a subscriber is told of a change; None when it may not see it or did not ask for it."""
        environment = subscription.environment((cluster_uid, change.namespace))
        if environment is None and subscription not in self._everywhere:
            return None
        cluster = self.clusters.get(cluster_uid, "")
        if not subscription.selector.wants_kind(change.resource, change.group):
            return None
        if subscription.selector.cluster and subscription.selector.cluster != cluster:
            return None
        return Event(kind=Event.CHANGE, change=_change(change, cluster, environment.name if environment else ""))

    def present(self, subscription: Subscription, environments: list[Environment] | None = None) -> list[tuple[str, ObservedChange]]:
        """What is there now, in some environments or in the whole subscription, as (cluster uid, change)."""
        if environments is None and subscription in self._everywhere:
            return [(uid, change) for uid in self.view.clusters() for change in self.view.objects(uid)]
        if environments is None:
            environments = [e for e in subscription.grants.environments.values() if subscription.selector.wants(e)]
        return [(e.cluster_uid, change) for e in environments for change in self.view.objects(e.cluster_uid, e.namespace)]

    def resync(self, cluster_uid: str, reason: str) -> None:
        """Tells everyone who sees something of a cluster that its events are not whole."""
        cluster = self.clusters.get(cluster_uid, "")
        told = set(self._everywhere)
        for (uid, _), listeners in self._by_place.items():
            if uid == cluster_uid:
                told |= listeners
        for subscription in told:
            subscription.queue.resync(cluster, reason)

    def job_moved(self, moved: jobs_pb2.JobMoved) -> None:
        """Shows a job's progress to its creator and to those who may read its target's jobs."""
        progress = event_pb2.JobProgress(name=moved.name, state=moved.state, percent=moved.percent, message=moved.message)
        for subscription in self._all:
            if subscription.jobs and (moved.creator == f"users/{subscription.user}" or subscription.grants.sees_job(moved.target)):
                subscription.queue.put(("job", moved.name), Event(kind=Event.JOB, job=progress))


def _change(change: ObservedChange, cluster: str, environment: str) -> event_pb2.Change:
    shown = event_pb2.Change(
        verb=_VERBS[change.verb],
        cluster=cluster,
        environment=environment,
        group=change.group,
        version=change.version,
        resource=change.resource,
        kind=change.kind,
        namespace=change.namespace,
        object=change.name,
        uid=change.uid,
        resource_version=change.resource_version,
        labels=change.labels,
        columns=change.columns,
    )
    shown.observe_time.CopyFrom(change.observe_time)
    return shown
