"""Status: tells the hub what became of each desired object; the truth on which the hub's view stands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from kubegems.fleet.v1 import cluster_pb2
from libs import log
from libs.faults import Fault, Unavailable
from libs.kube import Change, Reflector, Verb, resources
from libs.log import trace
from services.agent.desired.domain import Buried
from services.agent.desired.follower import Follower, Link
from services.agent.object_status import Object, Subject, failed, going, gone, live, tell_overwritten
from services.agent.status_parts import Key, parts

_log = log.get(__name__)
REPORT = wire.DESCRIPTOR.services_by_name["DesiredStateService"].methods_by_name["ReportStatus"]
_SECONDS = 30.0
_DEBOUNCE = 0.2
_FIRST_DELAY = 0.5
_MAX_DELAY = 30.0


class HubLink(Link, Protocol):
    """The way to a hub that is known."""

    @property
    def hub_uid(self) -> str:
        """Uid of the hub at the other end; empty while there is none."""
        ...


class StatusReporter:
    """Reports object statuses: all of them after connecting, then what changed, a moment after it did.

    Args:
        link: the way to the hub.
        follower: what is desired and what became of applying it.
        ours: reflectors of our four kinds, by kind.
        namespaces: the reflector of namespaces, for what holds one up.
        policy: what the cluster's owner denies, as it is told; None when there is no such thing.
    """

    def __init__(
        self, link: HubLink, follower: Follower, ours: dict[str, Reflector], namespaces: Reflector, *, debounce: float = _DEBOUNCE,
        policy: Callable[[], cluster_pb2.LocalPolicy] | None = None,
    ) -> None:  # fmt: skip
        self._link = link
        self._follower = follower
        self._ours = ours
        self._namespaces = namespaces
        self._debounce = debounce
        self._full = True
        self._told: dict[Key, bytes] = {}
        self._made: dict[Key, tuple[object, bytes]] = {}  # statuses, and what they were made from
        self._policy = policy
        self._told_head: tuple[int, str, bytes] | None = None
        self._wake = asyncio.Event()
        self._failures = 0

    def connected(self) -> None:
        """The tunnel stands anew: the hub needs a whole picture."""
        self._full = True
        self._told_head = None
        self._wake.set()

    def poke(self) -> None:
        """Something that is reported may have changed."""
        self._wake.set()

    async def on_change(self, change: Change) -> None:
        """A change of one of our objects, or of a namespace. One that went without a tombstone is looked after at once."""
        self._wake.set()
        if change.verb is Verb.DELETED:
            self._follower.poke()

    async def on_namespace(self, change: Change) -> None:
        """A namespace that is going may tell more of why an Environment is."""
        if change.verb is Verb.DELETED or change.object.get("holding"):
            self._wake.set()

    async def run(self) -> None:
        """Reports for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._debounce)
            self._wake.clear()
            try:
                await self.report()
                self._failures = 0
            except Fault as fault:
                self._wake.set()
                self._failures += 1
                if self._failures == 1:
                    _log.warning("status.not_reported", reason=fault.reason, problem=fault.message)
                ceiling = min(_MAX_DELAY, _FIRST_DELAY * 2 ** min(self._failures, 16))
                await asyncio.sleep(random.uniform(ceiling / 2, ceiling))  # noqa: S311 -- jitter

    async def report(self) -> None:
        """Sends what the hub does not know yet; a whole picture only once all our kinds have been listed.

        A hub whose set was not taken is told why, and nothing of what another hub wanted here.
        """
        if not self._link.hub_uid:
            return  # `connected` looks again: what is told depends on who hears it
        follows = self._follows()
        full = follows and self._full and all(r.synced.is_set() for r in self._ours.values())
        states = dict(self._states()) if follows else {}
        policy = self._policy() if self._policy else None
        told = policy.SerializeToString(deterministic=True) if policy else b""
        head = (self._follower.applied_generation if follows else 0, self._follower.confirmation_needed, told)
        new = states if full else self._differences(states) if follows else {}
        if not (full or new or head != self._told_head):
            return
        if full:
            self._full = False  # before the wait: connecting anew meanwhile asks for another
        requests = list(parts(new, whole=full))
        rest = wire.ReportStatusRequest(applied_generation=head[0], confirmation_needed=head[1], local_policy=policy)
        try:
            with trace.span("status.report", kind=trace.SpanKind.CLIENT, attributes={"objects": len(new), "full": full}):
                await self._send(requests, rest)
        except Fault:
            self._full = self._full or full or len(requests) > 1  # some parts may have arrived
            raise
        self._told = states
        self._told_head = head

    async def _send(self, requests: Iterable[wire.ReportStatusRequest], rest: wire.ReportStatusRequest) -> None:
        """Sends parts to one hub, each with what all have; raises Unavailable when the link comes to lead to another."""
        hub_uid = self._link.hub_uid
        for request in requests:
            if self._link.hub_uid != hub_uid:
                raise Unavailable("the hub went away between two parts of a report")
            request.MergeFrom(rest)
            await self._link.call(REPORT, request, timeout=_SECONDS)

    def _differences(self, states: dict[Key, bytes]) -> dict[Key, bytes]:
        """What is not as it was told, and what was there and is not any more."""
        new = {key: status for key, status in states.items() if self._told.get(key) != status}
        for key in self._told.keys() - states.keys():
            before = wire.ObjectStatus.FromString(self._told[key])
            if before.state not in (wire.ObjectStatus.REMOVED, wire.ObjectStatus.FAILED):  # those may never have been seen
                new[key] = _packed(gone(Buried(*key, before.generation)))
        return new

    def _follows(self) -> bool:
        """Whether the set that was taken is the hub's at the other end."""
        desired = self._follower.desired
        return desired is not None and desired.hub_uid == self._link.hub_uid

    def _states(self) -> Iterator[tuple[Key, bytes]]:
        """Every status to tell."""
        desired, outcome = self._follower.desired, self._follower.outcome
        hub_uid = desired.hub_uid if desired else ""
        there: set[Key] = set()
        for kind, found in self._objects():
            subject = Subject.of(kind, found)
            if subject is None or (hub_uid and subject.hub_uid != hub_uid):
                continue
            there.add(subject.key)
            failure = outcome.failures.get((kind, subject.name))
            if failure is not None and failure.uid == subject.uid and not subject.deleting:
                yield subject.key, _packed(failed(failure))
            else:
                yield subject.key, self._live(subject, outcome.removing.get((kind, subject.name), ""))
        for key in self._made.keys() - there:
            del self._made[key]
        for failure in outcome.failures.values():
            key = (failure.kind, failure.name, failure.uid)
            if key not in there:
                yield key, _packed(failed(failure))
        for buried in desired.buried if desired else ():
            if (buried.kind, buried.name, buried.uid) not in there:
                yield from self._not_seen(buried)

    def _live(self, subject: Subject, held: str) -> bytes:
        """Status of an object that is there; made anew only when something that it is made from is another than before."""
        overwritten = self._follower.overwritten.get((subject.kind, subject.name))
        holding = self._holding(subject.kind, subject.name) if subject.deleting else []
        source = (subject.found["metadata"]["resourceVersion"], held, holding, overwritten)
        made = self._made.get(subject.key)
        if made is not None and made[0] == source:
            return made[1]
        status = live(subject, held, holding)
        tell_overwritten(status, overwritten)
        self._made[subject.key] = source, (packed := _packed(status))
        return packed

    def _not_seen(self, buried: Buried) -> Iterator[tuple[Key, bytes]]:
        """Status of a buried object that the copy does not hold. Only a fresh read makes it gone, since a copy may lag."""
        outcome, key = self._follower.outcome, (buried.kind, buried.name, buried.uid)
        if buried in outcome.removed:
            yield key, _packed(gone(buried))
        elif (buried.kind, buried.name) in outcome.removing:
            yield key, _packed(going(buried, outcome.removing[buried.kind, buried.name]))

    def _objects(self) -> Iterable[tuple[str, Object]]:
        return ((kind, found) for kind, reflector in self._ours.items() for found in reflector.store)

    def _holding(self, kind: str, name: str) -> list[str]:
        """Why the namespace of an Environment is still there."""
        found = self._namespaces.store.get(name) if kind == resources.ENVIRONMENTS.kind else None
        if found is None:
            return []
        return [f"namespace {name} is {found['columns'].get('phase', 'there')}", *found.get("holding", ())]


def _packed(status: wire.ObjectStatus) -> bytes:
    return status.SerializeToString(deterministic=True)
