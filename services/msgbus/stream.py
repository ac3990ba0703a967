"""One subscriber's stream: first what was there already, then what changes, and when a resume token may be given."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kubegems.messages.v1.event_pb2 import Event, Freshness, Resync
from libs.faults import Fault
from services.msgbus import resume
from services.msgbus.domain import Environment, Grants, GrantsSilent, Selection
from services.msgbus.hub import Hub, Subscription
from services.msgbus.subscriber import Item
from services.msgbus.view import Seen

TICK_SECONDS = 0.25
FLUSH_SECONDS = 0.01  # at least that long between two batches of a busy stream; a lone event goes out at once
HEARTBEAT_SECONDS = 10.0  # at least every 15 s, says the contract
FIRST_GRANTS_SECONDS = 5.0
KINDS_SECONDS = 10.0  # that a snapshot waits for a kind which the agent begins to observe only now
TOKEN_SECONDS = 2.0  # between two resume tokens of a busy stream: what came after the last one comes twice, which is harmless
_BATCH = 100


@dataclass(slots=True)
class _End:
    """Where a snapshot ends: told when the kinds asked for by name are whole, or when waiting is of no use."""

    scope: str
    deadline: float


_Present = tuple[Seen, int] | _End | Item


class Stream:
    """What waits for one subscriber. Its methods never wait, save `granted` and `batch`."""

    def __init__(self, hub: Hub, subscription: Subscription, *, snapshot: bool, past: resume.Past | None, resumed: bool) -> None:
        self.subscription = subscription
        self._hub = hub
        self._snapshot, self._past, self._resumed = snapshot, past, resumed
        self._present: deque[_Present] | None = None  # most streams have nothing here most of the time
        self._begun = False
        self._fault: Fault | None = None
        self._token_at = self._sent_at = -math.inf
        self._deadline = math.inf

    def changed(self, grants: Grants) -> None:
        """New rights, the first ones too."""
        before = self.subscription.grants
        gained = self._hub.regrant(self.subscription, grants)
        if self._begun:
            if self.subscription.selection.loses_rest(grants, before):  # the other way round: it is gained
                self._show(None, "")
            else:
                self._gained(gained)
            return
        self._hub.add(self.subscription)
        self._begun = True
        self._told()
        lost = self._replay() if self._resumed else False
        if self._snapshot and (lost or not self._resumed):
            self._show(None, "")

    def ended(self, fault: Fault) -> None:
        """There are no rights any more."""
        self._fault = fault
        self.subscription.queue.wake()

    def reselect(self, selection: Selection, *, snapshot: bool) -> None:
        """Serves other selectors from here on."""
        self._behind(self.subscription.queue.now())
        self._hub.reselect(self.subscription, selection)
        self._told()
        if snapshot:
            self._show(None, "")
        self.subscription.queue.wake()

    def _told(self) -> None:
        self._behind([Item(Event(kind=Event.SUBSCRIBED, subscription=f"subscriptions/{self.subscription.id}"))])
        self.subscription.queue.wake()

    def _behind(self, present: Iterable[_Present], end: Iterable[_End] = ()) -> None:
        """Puts something behind what is there already, save ends of snapshots: what waits in the queue is told before those."""
        if self._present is None:
            self._present = deque()
        ends: list[_Present] = []
        while self._present and isinstance(self._present[-1], _End):
            ends.append(self._present.pop())
        self._present.extend(present)
        self._present.extend((*reversed(ends), *end))

    def _show(self, environments: Iterable[Environment] | None, scope: str) -> None:
        """What is there now goes behind what waits already: an older change must not follow a newer state."""
        self._behind(self.subscription.queue.now())
        end = _End(scope, asyncio.get_running_loop().time() + KINDS_SECONDS)
        self._behind(((seen, Freshness.SNAPSHOT) for seen in self._hub.present(self.subscription, environments)), [end])
        self.subscription.queue.wake()

    def _gained(self, environments: Iterable[Environment]) -> None:
        for environment in environments:
            self._show([environment], environment.name)

    def _replay(self) -> bool:
        """What was missed since the token, rights among it, or RESYNC where that cannot be known; whether there was any such."""
        past, self._past = self._past, None
        if past is None:
            self._resync("")
            return True
        seen = self.subscription.selection.seen(self.subscription.grants)
        marks = resume.marks(seen)
        if past.marks not in (marks, resume.digest(marks)) and (isinstance(past.marks, str) or ("" in marks) != ("" in past.marks)):
            self._resync("", "RIGHTS_CHANGED")
            return True
        then = marks if isinstance(past.marks, str) else past.marks
        self._behind(Item(Event(kind=Event.SCOPE_REVOKED, scope=name)) for name, mark in then.items() if marks.get(name) != mark)
        missed, lost = self._hub.view.since(past.vector, self.subscription.wanted)
        self._behind((seen, Freshness.REPLAY) for seen in missed)
        for uid in sorted(lost):
            self._resync(self._hub.clusters.get(uid, ""))
        environments = self.subscription.grants.environments
        self._gained(environments[place] for name, place in seen.items() if name and then.get(name) != marks[name])
        return bool(lost)

    def _resync(self, scope: str, reason: str = "RESUME_EXPIRED") -> None:
        self._behind([Item(Event(kind=Event.RESYNC, resync=Resync(scope=scope, reason=reason)))])

    async def granted(self) -> None:
        """Waits for the first rights; raises what keeps them away."""
        try:
            async with asyncio.timeout(FIRST_GRANTS_SECONDS):
                while not self._begun and self._fault is None:
                    if (filled := self.subscription.queue.filled()) is not None:
                        await filled
        except TimeoutError as error:
            raise GrantsSilent("rights cannot be confirmed now; try again") from error
        self.check()

    def check(self) -> None:
        """Raises what ended the rights."""
        if self._fault is not None:
            raise self._fault

    async def batch(self) -> list[Item]:
        """The next events; none after a while of silence. Raises what ended the rights. `tick` must be called now and then."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + HEARTBEAT_SECONDS
        while True:
            self.check()
            before = len(self._present or ())
            items = list(self._some_present(self._present)) if self._present else self.subscription.queue.now()
            if items:
                self._sent_at = loop.time()
                return items
            if self._present and len(self._present) < before:  # none of them was asked for: on to the next ones
                await asyncio.sleep(0)
                continue
            if loop.time() >= self._deadline:
                return []
            if (filled := self.subscription.queue.filled()) is not None:
                await filled
            early = self._sent_at + FLUSH_SECONDS - loop.time()
            if early > 0:
                await asyncio.sleep(early)

    def tick(self, now: float) -> None:
        """Wakes the stream when its silence has lasted long enough, or when a snapshot waits to be ended."""
        if self._present or now >= self._deadline:
            self.subscription.queue.wake()

    def _some_present(self, present: deque[_Present]) -> Iterator[Item]:
        for _ in range(min(_BATCH, len(present))):
            item = present[0]
            if isinstance(item, _End):
                yield from self.subscription.queue.now()
                if not self._over(item):
                    return
                present.popleft()
                yield from self._ends(item)
                continue
            present.popleft()
            if isinstance(item, Item):
                if item.place is None or self.subscription.grants.sees(item.place):
                    yield item
                continue
            seen, source = item
            made = self._hub.item(self.subscription, seen)
            if made is not None:
                made.source = source
                yield made
        if not present:
            self._present = None

    def _over(self, end: _End) -> bool:
        missing = self._hub.missing(self.subscription)
        late = asyncio.get_running_loop().time() >= end.deadline
        return late or all(self._hub.hopeless(self.subscription, uid) for uid in missing)

    def _ends(self, end: _End) -> Iterator[Item]:
        for uid in self._hub.missing(self.subscription):
            scope = self._hub.clusters.get(uid, "")
            yield Item(Event(kind=Event.RESYNC, resync=Resync(scope=scope, reason="NOT_OBSERVED")))
        yield Item(Event(kind=Event.SNAPSHOT_END, scope=end.scope))

    def due(self) -> bool:
        """Whether a resume token may be given: all up to here has been taken out. Ask right after `batch`."""
        now = asyncio.get_running_loop().time()
        if self._present or len(self.subscription.queue) or now - self._token_at < TOKEN_SECONDS:
            return False
        self._token_at = now
        return True
