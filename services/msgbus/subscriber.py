"""One subscriber's queue: bounded, newest per object, and honest about what it dropped."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable

from kubegems.messages.v1 import event_pb2
from kubegems.messages.v1.event_pb2 import Event


class Queue:
    """Events that wait for one subscriber.

    A newer change of the same object replaces the one that waits, at the end of the line, so order per object is kept
    and a slow reader sees the newest state. When more than `size` objects wait, all are dropped and one RESYNC stands
    for them. Putting never waits: a frozen subscriber costs nobody else anything.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: OrderedDict[Hashable, Event] = OrderedDict()
        self._filled = asyncio.Event()
        self.dropped = 0

    def put(self, key: Hashable, event: Event) -> None:
        """Adds an event; `key` is the object's identity."""
        replaced = self._waiting.pop(key, None)
        if replaced is not None and _is_added(replaced) and not _is_deleted(event):
            event.change.verb = event_pb2.Change.ADDED  # the subscriber has not heard of the object yet
        if len(self._waiting) >= self._size:
            self.resync("", "SLOW_SUBSCRIBER")
            return
        self._waiting[key] = event
        self._filled.set()

    def resync(self, scope: str, reason: str) -> None:
        """Tells the subscriber to list a scope (`""`: all) again; what waits for all of it is dropped."""
        if not scope:
            self.dropped += len(self._waiting)
            self._waiting.clear()
        self._waiting["resync", scope, reason] = Event(kind=Event.RESYNC, resync=event_pb2.Resync(scope=scope, reason=reason))
        self._filled.set()

    def drop_scope(self, environment: str) -> None:
        """Takes back what waits from an environment whose right was lost."""
        for key in [key for key, event in self._waiting.items() if event.change.environment == environment]:
            del self._waiting[key]

    def wake(self) -> None:
        """Lets `take` return although nothing waits here."""
        self._filled.set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def take(self, seconds: float) -> list[Event]:
        """What waits, all at once; empty when nothing came in time."""
        if not self._waiting:
            self._filled.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._filled.wait()
            except TimeoutError:
                return []
        events = list(self._waiting.values())
        self._waiting.clear()
        return events


def _is_added(event: Event) -> bool:
    return event.kind == Event.CHANGE and event.change.verb == event_pb2.Change.ADDED


def _is_deleted(event: Event) -> bool:
    return event.kind == Event.CHANGE and event.change.verb == event_pb2.Change.DELETED
