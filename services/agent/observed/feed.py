"""Feed: one kind's changes on their way to the bus, newest per object, bounded, numbered without gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from kubegems.agent.v1 import events_pb2
from libs.kube import Change, Resource, Store, Verb
from libs.kube.store import key_of

_Wire = events_pb2.ObservedChange
_VERBS = {Verb.ADDED: _Wire.ADDED, Verb.MODIFIED: _Wire.MODIFIED, Verb.DELETED: _Wire.DELETED}
Object = dict[str, Any]


class Feed:
    """Changes of one kind that wait to be published.

    While more wait than `limit`, they are forgotten and the whole kind is listed afresh, from the copy, when there is
    room again: memory stays bounded by the copy's own size however long the bus is away.

    Args:
        resource: the kind.
        store: the agent's copy of it.
        epoch: the agent's start.
        limit: most objects that wait.
    """

    def __init__(self, resource: Resource, store: Store, *, epoch: str, limit: int) -> None:
        self.resource = resource
        self.waiting = asyncio.Event()
        self.relists = 0
        self.published = 0  # counter of the last message that the broker has
        self._store = store
        self._epoch = epoch
        self._limit = limit
        self._counter = 0
        self._out: list[_Wire] = []
        self._pending: dict[tuple[str, str], tuple[int, Object]] = {}
        self._snapshot: Iterator[_Wire] | None = None
        self._listed = False
        self._listing = True  # nothing is told before a first whole list

    def __len__(self) -> int:
        return len(self._pending)

    def restart(self, store: Store) -> None:
        """Goes on with a fresh copy: nothing is told before its first whole list."""
        self._store, self._snapshot = store, None
        self._pending.clear()
        self._listed, self._listing = False, True
        if not self._out:
            self.waiting.clear()

    def relist(self) -> None:
        """Lists the whole kind afresh, from the copy; a list that is under way is finished first."""
        self._pending.clear()
        self._listing = True
        self.relists += 1
        if self._listed:
            self.waiting.set()

    async def take(self, change: Change) -> None:
        """Takes a change in; never waits."""
        if change.verb is Verb.LISTED:
            self._listed = True
            if self._listing:
                self.waiting.set()
            return
        if self._listing:
            return  # the list will be made from the copy, which has it already
        key, verb = key_of(change.object), _VERBS[change.verb]
        earlier = self._pending.pop(key, None)
        if earlier is not None and earlier[0] == _Wire.ADDED and verb == _Wire.MODIFIED:
            verb = _Wire.ADDED
        self._pending[key] = (verb, change.object)
        if len(self._pending) > self._limit:
            self._pending.clear()
            self._listing = True
            self.relists += 1
        self.waiting.set()

    def take_out(self, most: int) -> list[_Wire]:
        """The next messages, numbered; the same ones until `done`, so that a publisher that is stopped in between leaves no gap."""
        if self._out:
            return self._out
        if self._snapshot is None and self._listing and self._listed:
            self._listing = False
            self._pending.clear()
            self._snapshot = self._list()
        found = list(islice(self._snapshot, most)) if self._snapshot is not None else []
        if len(found) < most:
            self._snapshot = None
            keys = list(islice(self._pending, most - len(found)))
            found += [self._message(*self._pending.pop(key)) for key in keys]
        self._out = found
        return found

    def done(self) -> None:
        """What was taken out is published, in order."""
        if self._out:
            self.published = self._out[-1].counter
        self._out = []
        if self._snapshot is None and not self._pending and not (self._listing and self._listed):
            self.waiting.clear()

    def _list(self) -> Iterator[_Wire]:
        yield self._marker(_Wire.LISTING)
        for found in self._store:  # a snapshot of it, so what changes meanwhile comes after the list
            yield self._message(_Wire.ADDED, found)
        yield self._marker(_Wire.LISTED)

    def _message(self, verb: int, found: Object) -> _Wire:
        message = self._marker(verb)
        metadata = found["metadata"]
        message.namespace = metadata.get("namespace", "")
        message.name = metadata["name"]
        message.uid = metadata.get("uid", "")
        message.resource_version = metadata.get("resourceVersion", "")
        message.labels.update(metadata["labels"])
        message.columns.update(found["columns"])
        return message

    def _marker(self, verb: int) -> _Wire:
        self._counter += 1
        resource = self.resource
        message = _Wire(epoch=self._epoch, counter=self._counter, group=resource.group, version=resource.version)
        message.verb = verb  # type: ignore[assignment] # one of the enum's own values
        message.resource, message.kind = resource.plural, resource.kind
        return message


def stamped(messages: list[_Wire], now: datetime) -> list[_Wire]:
    """The messages with the time at which the agent saw them."""
    for message in messages:
        message.observe_time.FromDatetime(now)
    return messages
