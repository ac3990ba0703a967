"""MessageService: one generator per stream, from grants to events."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from typing import Any

from kubegems.messages.v1 import message_service_pb2 as wire
from kubegems.messages.v1.event_pb2 import Event
from libs.clock import new_id
from libs.crypt.box import Box
from libs.rpc.call import Call
from services.msgbus import grants as rights
from services.msgbus import resume, sending
from services.msgbus.bodies import Bodies, pieces
from services.msgbus.domain import NoSubscription, Selection, Selector, TooManyStreams, resources, shared
from services.msgbus.hub import Hub, Subscription
from services.msgbus.peers import Peers
from services.msgbus.stream import TICK_SECONDS, Stream
from services.msgbus.subscriber import Item, Queue


class Messages:
    """kubegems.messages.v1.MessageService.

    Args:
        hub: who listens to what.
        source: whose rights are what.
        box: seals resume tokens.
        queue_size: events that wait for one subscriber.
        streams_per_user: open streams of one user here.
        bodies: fetches objects for those who want them; None refuses nobody and sends none.
        peers: the other replicas.
    """

    def __init__(
        self, hub: Hub, source: rights.Source, box: Box, *, queue_size: int, streams_per_user: int,
        bodies: Bodies | None = None, peers: Peers | None = None,
    ) -> None:  # fmt: skip
        self._hub = hub
        self._watches = rights.Watches(source)
        self._box = box
        self._queue_size = queue_size
        self._streams_per_user = streams_per_user
        self._bodies = bodies
        self._peers = peers
        self.replica = peers.replica if peers else new_id().hex
        self._numbers = itertools.count(1)
        self._streams: dict[str, Stream] = {}
        self._ticking = False
        self._packed: tuple[int, dict[Any, bytes]] = (-1, {})

    async def Subscribe(self, request: wire.SubscribeRequest, call: Call) -> AsyncIterator[list[bytes]]:
        """Streams encoded events, together those that are there together, until the caller goes or its session ends."""
        user = call.caller.id
        if self._hub.count(user) >= self._streams_per_user:
            raise TooManyStreams(f"{user} has {self._streams_per_user} streams open here; close one first")
        asked = selection(request)
        subscription = Subscription(user, asked, Queue(self._queue_size), f"{self.replica}-{next(self._numbers)}")
        past = resume.open_token(self._box, request.resume_token, user, resume.selectors_hash(asked)) if request.resume_token else None
        stream = Stream(self._hub, subscription, snapshot=request.snapshot, past=past, resumed=bool(request.resume_token))
        self._hub.open(subscription)
        self._streams[subscription.id] = stream
        self._tick()
        try:
            with self._watches.joined(user, call.caller.session, stream):
                await stream.granted()
                while True:
                    pairs, grants = self._pairs(stream, await stream.batch()), subscription.grants
                    for some in pieces(pairs):
                        if self._bodies is not None:
                            await self._bodies.add(user, some)
                        for part in sending.parts(subscription, some, grants):
                            stream.check()  # the session may have ended while another part was being written
                            yield part
        finally:
            del self._streams[subscription.id]
            self._hub.remove(subscription)

    def _tick(self) -> None:
        """One timer for all streams, for as long as there are some."""
        if self._ticking or not self._streams:
            return
        self._ticking = True
        loop = asyncio.get_running_loop()

        def tick() -> None:
            self._ticking = False
            now = loop.time()
            for stream in list(self._streams.values()):
                stream.tick(now)
            self._tick()

        loop.call_later(TICK_SECONDS, tick)

    def _pairs(self, stream: Stream, items: list[Item]) -> list[sending.Pair]:
        """The items of a batch, or a heartbeat, each with what this subscriber alone is told; a resume token when one is due."""
        token = self._token(stream.subscription) if stream.due() else ""
        pairs = [(item, sending.tail(item, self._hub.view)) for item in items or [_heartbeat(stream.subscription)]]
        if token:
            pairs[-1][1].resume_token = token
        return pairs

    def _token(self, subscription: Subscription) -> str:
        """Sealed for one; what it carries is the same for all who may see the same kinds of the same clusters, until something changes."""
        version, packed = self._packed
        if version != self._hub.view.version:
            packed = {}
            self._packed = (self._hub.view.version, packed)
        vector = packed.get(subscription.reach)
        if vector is None:
            vector = packed[subscription.reach] = resume.packed(self._hub.view.vector(subscription.wanted))
        if subscription.heads is None:
            asked = subscription.selection
            marks = resume.marks(asked.seen(subscription.grants))
            subscription.heads = resume.heads(subscription.user, resume.selectors_hash(asked), marks)
        return resume.seal(self._box, subscription.heads, vector)

    async def UpdateSubscription(self, request: wire.UpdateSubscriptionRequest, call: Call) -> wire.UpdateSubscriptionResponse:
        """Gives a stream of the caller's other selectors, on whichever replica it is."""
        id_ = request.name.removeprefix("subscriptions/")
        user = call.caller.id
        if not self.update(user, id_, request) and not (self._peers and await self._peers.update(user, id_, request)):
            raise NoSubscription(f"{request.name} is not open", {"resource_name": request.name})
        return wire.UpdateSubscriptionResponse()

    def update(self, user: str, id_: str, request: wire.UpdateSubscriptionRequest) -> bool:
        """As UpdateSubscription, for a stream of this replica; whether it is one, and the user's."""
        stream = self._streams.get(id_)
        if stream is None or stream.subscription.user != user:
            return False
        stream.reselect(changed_selection(request), snapshot=request.snapshot)
        return True


def selection(request: wire.SubscribeRequest) -> Selection:
    """What a request asks for."""
    selectors = [_selector(s) for s in request.selectors]
    if not selectors or request.scopes or request.resources or request.cluster:
        selectors.append(Selector(tuple(request.scopes), resources(request.resources), request.cluster))
    return shared(Selection(() if request.no_changes else tuple(selectors), request.jobs, request.notices))


def changed_selection(request: wire.UpdateSubscriptionRequest) -> Selection:
    """What an update asks for."""
    selectors = tuple(_selector(s) for s in request.selectors) or (Selector(),)
    return Selection(() if request.no_changes else selectors, request.jobs, request.notices)


def _selector(s: wire.Selector) -> Selector:
    labels: Iterable[tuple[str, str]] = s.labels.items()
    return Selector(tuple(s.scopes), resources(s.resources), s.cluster, s.namespace, s.object, frozenset(labels), s.bodies)


def _heartbeat(subscription: Subscription) -> Item:
    return Item(Event(kind=Event.HEARTBEAT, subscription=f"subscriptions/{subscription.id}"))
