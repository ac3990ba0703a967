"""What a subscriber is told of an observed change: by which verb, with what in it, and how old it is."""

from __future__ import annotations

import time

from google.protobuf.duration_pb2 import Duration

from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.messages.v1 import event_pb2
from kubegems.messages.v1.event_pb2 import Freshness
from services.msgbus.domain import Selection, Selector
from services.msgbus.subscriber import Item
from services.msgbus.view import Seen

_VERBS = {
    ObservedChange.ADDED: event_pb2.Change.ADDED,
    ObservedChange.MODIFIED: event_pb2.Change.MODIFIED,
    ObservedChange.DELETED: event_pb2.Change.DELETED,
}


def pick(selection: Selection, seen: Seen, cluster: str, environment: str) -> tuple[int | None, bool]:
    """The verb by which a change is told, None for not at all, and whether with its body.

    Args:
        selection: what a subscriber asked for.
        seen: the change.
        cluster: `clusters/{cluster}` that it is of.
        environment: resource name of the environment that it lies in; empty for none.
    """
    verb: int | None = None
    bodies = False
    for selector in selection.selectors:
        found = _picked(selector, seen, cluster, environment)
        if found is None:
            continue
        bodies = bodies or selector.bodies
        # who sees it by one selector still sees it, though another has let go of it
        verb = found if verb is None or verb == event_pb2.Change.DELETED else verb
    return verb, bodies


def _picked(selector: Selector, seen: Seen, cluster: str, environment: str) -> int | None:
    """The verb by which one selector tells of a change: an object that loses the labels asked for is DELETED to it."""
    change, before = seen.change, seen.before
    if not (selector.in_scope(environment) and selector.fits(cluster, change.namespace, change.name)):
        return None
    if not selector.wants_kind(change.resource, change.group):
        return None
    verb: int = _VERBS[change.verb]
    if verb != event_pb2.Change.DELETED:
        verb = event_pb2.Change.ADDED if before is None else event_pb2.Change.MODIFIED
    if not selector.labels:
        return verb
    carried, carries = before is not None and selector.carries(before.labels), selector.carries(change.labels)
    if verb == event_pb2.Change.DELETED or not carries:
        return event_pb2.Change.DELETED if carried or (carries and before is None) else None
    return verb if carried else event_pb2.Change.ADDED


def change(seen: Seen, cluster: str, environment: str) -> event_pb2.Change:
    """What is sent of a change, without its body.

    It is ADDED or MODIFIED by what was there before, whatever the agent calls it.
    """
    observed = seen.change
    verb = _VERBS[observed.verb]
    if verb != event_pb2.Change.DELETED:
        verb = event_pb2.Change.ADDED if seen.before is None else event_pb2.Change.MODIFIED
    shown = event_pb2.Change(
        verb=verb,
        cluster=cluster,
        environment=environment,
        group=observed.group,
        version=observed.version,
        resource=observed.resource,
        kind=observed.kind,
        namespace=observed.namespace,
        object=observed.name,
        uid=observed.uid,
        resource_version=observed.resource_version,
        labels=observed.labels,
        columns=observed.columns,
    )
    shown.observe_time.CopyFrom(observed.observe_time)
    return shown


def freshen(fresh: Freshness, item: Item, heard: float | None) -> None:
    """Tells how old what is sent is; `heard` is how many seconds ago its cluster was heard of, None for never or for no cluster's."""
    fresh.source = item.source
    seen = item.event.change.observe_time
    _set(fresh.age, time.time() - seen.seconds - seen.nanos / 1e9)
    if heard is not None:
        _set(fresh.cluster_age, heard)


def _set(duration: Duration, seconds: float) -> None:
    """Sets a duration, in whole milliseconds and never below zero."""
    milliseconds = max(0, int(seconds * 1000))
    duration.seconds, duration.nanos = milliseconds // 1000, milliseconds % 1000 * 1_000_000
