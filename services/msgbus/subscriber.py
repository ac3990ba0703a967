"""One subscriber's queue: bounded, newest per object, and honest about what it dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter

from kubegems.messages.v1.event_pb2 import Change, Event, Freshness, Resync
from services.msgbus.domain import Grants, Place

DROPPED = Counter("kubegems_msgbus_dropped", "Events taken back from a subscriber's queue, by reason.", ["reason"])


@dataclass(slots=True, eq=False)
class Shared:
    """An event that many wait for, encoded once for all of them."""

    event: Event
    _encoded: bytes = b""

    @property
    def encoded(self) -> bytes:
        """Its bytes."""
        if not self._encoded:
            self._encoded = self.event.SerializeToString()
        return self._encoded


@dataclass(slots=True)
class Item:
    """One event that waits. `event` may be shared by all who wait for it: never changed.

    Attributes:
        event: the event.
        place: where the object is; None for what is no object's.
        verb: in place of the event's own, where the subscriber knows less than others.
        source: where it comes from.
        bodies: whether the object's JSON is to be sent along.
        shared: whence its bytes come, when others are sent the same.
    """

    event: Event
    place: Place | None = None
    verb: Any = None
    source: Any = Freshness.LIVE
    bodies: bool = False
    shared: Shared | None = None

    @property
    def encoded(self) -> bytes:
        """The event's bytes; what the subscriber alone is told goes behind them, and counts more, as protobuf merges."""
        return self.shared.encoded if self.shared is not None else self.event.SerializeToString()

    @property
    def shown(self) -> Any:
        """The verb that the subscriber sees."""
        return self.event.change.verb if self.verb is None else self.verb

    @property
    def is_change(self) -> bool:
        """Whether it tells of an object."""
        return self.event.kind == Event.CHANGE


class Queue:
    """Events that wait for one subscriber.

    A newer change of the same object replaces the one that waits, at the end of the line, so order per object is kept
    and a slow reader sees the newest state. When more than `size` objects wait, all are dropped and one RESYNC stands
    for them. Putting never waits: a frozen subscriber costs nobody else anything.
    """

    __slots__ = ("_filled", "_size", "_waiter", "_waiting", "dropped")

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: dict[Hashable, Item] = {}
        self._filled = False
        self._waiter: asyncio.Future[None] | None = None
        self.dropped = 0

    def put(self, key: Hashable, item: Item) -> None:
        """Adds an event; `key` is the object's identity."""
        replaced = self._waiting.pop(key, None)
        if replaced is not None and item.is_change and replaced.shown == Change.ADDED and item.shown == Change.MODIFIED:
            item.verb = Change.ADDED  # the subscriber has not heard of the object yet
        if len(self._waiting) >= self._size:
            self.resync("", "SLOW_SUBSCRIBER")
            return
        self._waiting[key] = item
        self.wake()

    def resync(self, scope: str, reason: str) -> None:
        """Tells the subscriber to list a scope (`""`: all) again; what waits for all of it is dropped, save news of its rights."""
        if not scope:
            kept = [(k, i) for k, i in self._waiting.items() if i.event.kind in (Event.SCOPE_REVOKED, Event.SUBSCRIBED)]
            dropped = len(self._waiting) - len(kept)
            self.dropped += dropped
            DROPPED.labels(reason).inc(dropped)
            self._waiting = dict(kept)
        self._waiting["resync", scope, reason] = Item(Event(kind=Event.RESYNC, resync=Resync(scope=scope, reason=reason)))
        self.wake()

    def revoke(self, grants: Grants) -> None:
        """Takes back what waits from places that may not be seen any more."""
        gone = [key for key, item in self._waiting.items() if item.place is not None and not grants.sees(item.place)]
        DROPPED.labels("REVOKED").inc(len(gone))
        for key in gone:
            del self._waiting[key]

    def retell(self, kind: Event.Kind.ValueType, scope: str) -> None:
        """Other jobs or messages may be seen now: takes back those that wait, and asks to list them again."""
        gone = [key for key, item in self._waiting.items() if item.event.kind == kind]
        DROPPED.labels("REVOKED").inc(len(gone))
        for key in gone:
            del self._waiting[key]
        self.resync(scope, "RIGHTS_CHANGED")

    def wake(self) -> None:
        """Lets who waits for `filled` go on although nothing may be here."""
        self._filled = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __len__(self) -> int:
        return len(self._waiting)

    def now(self) -> list[Item]:
        """What waits, all at once, perhaps nothing."""
        items = list(self._waiting.values())
        self._waiting.clear()
        self._filled = False
        return items

    def filled(self) -> asyncio.Future[None] | None:
        """What to wait for until something is here or `wake` is called; None when that is so already.

        One future for the one who reads, and no timer: thousands wait here.
        """
        if self._filled:
            self._filled = False
            return None
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter
