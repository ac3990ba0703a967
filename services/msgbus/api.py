"""MessageService: one generator per stream, from grants to events."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.messages.v1 import message_service_pb2
from kubegems.messages.v1.event_pb2 import Event
from libs.crypt.box import Box
from libs.rpc.call import Call
from services.msgbus import grants as rights
from services.msgbus import resume
from services.msgbus.domain import Environment, Grants, GrantsSilent, Selector, TooManyStreams, resources
from services.msgbus.hub import Hub, Subscription
from services.msgbus.subscriber import Queue

HEARTBEAT_SECONDS = 10.0  # at least every 15 s, says the contract
FIRST_GRANTS_SECONDS = 5.0


class Messages:
    """kubegems.messages.v1.MessageService."""

    def __init__(self, hub: Hub, source: rights.Source, box: Box, *, queue_size: int, streams_per_user: int) -> None:
        self._hub = hub
        self._source = source
        self._box = box
        self._queue_size = queue_size
        self._streams_per_user = streams_per_user

    async def Subscribe(self, request: message_service_pb2.SubscribeRequest, call: Call) -> AsyncIterator[Event]:
        """Streams changes until the caller goes or its session ends."""
        user = call.caller.id
        if self._hub.count(user) >= self._streams_per_user:
            raise TooManyStreams(f"{user} has {self._streams_per_user} streams open here; close one first")
        selector = Selector(tuple(request.scopes), resources(request.resources), request.cluster)
        stream = _Stream(self._hub, Subscription(user, selector, Queue(self._queue_size), request.jobs), snapshot=request.snapshot)
        asked = resume.selectors_hash(request)
        watching = asyncio.create_task(rights.watch(self._source, user, call.caller.session, stream.changed), name=f"grants of {user}")
        try:
            await stream.granted(watching)
            if request.resume_token:
                stream.resume(resume.open_token(self._box, request.resume_token, user, asked))
            while True:
                events = await stream.next(watching)
                events[-1].resume_token = resume.seal(self._box, user, asked, self._hub.view.vector())
                for event in events:
                    event.send_time.FromDatetime(datetime.now(UTC))
                    yield event
        finally:
            self._hub.remove(stream.subscription)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await watching


class _Stream:
    """What waits for one subscriber: first what was there already, then what changes."""

    def __init__(self, hub: Hub, subscription: Subscription, *, snapshot: bool) -> None:
        self.subscription = subscription
        self._hub = hub
        self._snapshot = snapshot
        self._present: deque[tuple[str, ObservedChange] | str] = deque()
        self._first = asyncio.Event()

    def changed(self, grants: Grants) -> None:
        """New rights, the first ones too."""
        gained: list[Environment] | None = self._hub.regrant(self.subscription, grants)
        if not self._first.is_set():
            self._hub.add(self.subscription)
            self._first.set()
            gained = None
        if self._snapshot and gained is None:
            self._show(None, "")
        elif gained:
            for environment in gained:
                self._show([environment], environment.name)

    def _show(self, environments: list[Environment] | None, scope: str) -> None:
        self._present.extend(self._hub.present(self.subscription, environments))
        self._present.append(scope)
        self.subscription.queue.wake()

    async def granted(self, watching: asyncio.Task[None]) -> None:
        """Waits for the first rights; raises what ended the watch."""
        first = asyncio.create_task(self._first.wait(), name="first grants")
        try:
            await asyncio.wait({first, watching}, return_when=asyncio.FIRST_COMPLETED, timeout=FIRST_GRANTS_SECONDS)
            if watching.done():
                watching.result()
            if not first.done():
                raise GrantsSilent("rights cannot be confirmed now; try again")
        finally:
            first.cancel()

    def resume(self, vector: resume.Vector | None) -> None:
        """Puts what was missed since a vector into the queue, or RESYNC when that cannot be known."""
        missed = None if vector is None else self._hub.view.since(vector)
        if missed is None:
            self.subscription.queue.resync("", "RESUME_EXPIRED")
            return
        for seen in missed:
            self._hub.send(self.subscription, seen.cluster_uid, seen.change)

    async def next(self, watching: asyncio.Task[None]) -> list[Event]:
        """The next events, at least one; raises what ended the watch of the rights."""
        events = list(self._some_present())
        if events:
            return events
        taking = asyncio.create_task(self.subscription.queue.take(HEARTBEAT_SECONDS), name="next events")
        try:
            await asyncio.wait({taking, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            events = taking.result()
        finally:
            taking.cancel()
        if not events and not self._present:
            return [Event(kind=Event.HEARTBEAT)]
        return events or await self.next(watching)

    def _some_present(self, most: int = 100) -> Iterator[Event]:
        for _ in range(min(most, len(self._present))):
            item = self._present.popleft()
            if isinstance(item, str):
                yield Event(kind=Event.SNAPSHOT_END, scope=item)
                continue
            event = self._hub.event(self.subscription, *item)
            if event is not None:
                yield event
