"""What goes out: the bytes that all share, encoded once, and behind them what one subscriber alone is told, merged as protobuf merges."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from kubegems.messages.v1.event_pb2 import Event
from services.msgbus import told
from services.msgbus.domain import Grants
from services.msgbus.hub import Subscription
from services.msgbus.subscriber import Item
from services.msgbus.view import View

Pair = tuple[Item, Event]  # an event, and what one subscriber alone is told beside it
_PART_BYTES = 64 * 1024  # about what is under way to a client anyway


def tail(item: Item, view: View) -> Event:
    """What one subscriber is told beside the event itself."""
    event = Event()
    if item.is_change:
        if item.verb is not None:
            event.change.verb = item.verb
        told.freshen(event.freshness, item, view.age(item.place[0]) if item.place else None)
    return event


def parts(subscription: Subscription, pairs: Sequence[Pair], before: Grants) -> Iterator[list[bytes]]:
    """Items and their tails encoded, as many at once as make one write.

    Each is looked at just before: rights may have changed since the items were taken out with `before`, and may change while
    others are being written.
    """
    part: list[bytes] = []
    size = 0
    for item, own in pairs:
        if subscription.grants is not before:
            own.ClearField("resume_token")  # it would say that all before it was sent
            if _lost(item, before, subscription.grants):
                continue
        _stamp(own)
        part.append(item.encoded + own.SerializeToString())
        size += len(part[-1])
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _lost(item: Item, before: Grants, now: Grants) -> bool:
    """Whether an item may not be sent any more; as for what waits in the queue, jobs and messages are listed again after other rights."""
    if item.place is not None:
        return not now.sees(item.place)
    if item.event.kind == Event.JOB:
        return before.jobs != now.jobs
    return item.event.kind == Event.NOTICE and before.audiences != now.audiences


def _stamp(event: Event) -> None:
    event.send_time.seconds, event.send_time.nanos = divmod(time.time_ns(), 1_000_000_000)
