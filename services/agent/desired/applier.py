"""Applier: makes the cluster hold a desired set, as `gems:service:desired-state`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby

from libs import log
from libs.clock import Clock, SystemClock
from libs.faults import Fault, NotFound, PermissionDenied
from libs.kube import Conflict, KindMissing, KubeClient, Principal
from libs.kube.resources import BY_KIND
from libs.log import trace
from services.agent.desired import conflicts, domain
from services.agent.desired.conflicts import FieldConflict
from services.agent.desired.domain import Buried, DesiredSet, Failure, Object, Outcome, Wanted

_log = log.get(__name__)
FIELD_MANAGER = "kubegems-hub"
PRINCIPAL = Principal("gems:service:desired-state")
_REMEMBERED = timedelta(hours=1)
_AT_ONCE = 8  # writes under way; the API server's fairness would queue more anyway


@dataclass(frozen=True, slots=True)
class Overwritten:
    """What of an object (row uid) was another manager's and was put back, and when."""

    uid: str
    conflicts: list[FieldConflict]
    time: datetime


@dataclass(slots=True)
class Live:
    """What the cluster holds of our kinds, and the kinds that cannot be seen."""

    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: defaultdict(dict))
    problems: dict[str, Fault] = field(default_factory=dict)

    def ours(self, hub_uid: str) -> int:
        """Objects of a hub."""
        return sum(domain.annotations_of(o).get(domain.HUB_UID) == hub_uid for of in self.objects.values() for o in of.values())


class Applier:
    """Applies sets; safe to repeat at any time, since it compares first and all its writes are idempotent.

    Attributes:
        overwritten: what other field managers had set and was put back within the last hour, by kind and name.
    """

    def __init__(self, client: KubeClient, clock: Clock | None = None) -> None:
        self.overwritten: dict[tuple[str, str], Overwritten] = {}
        self._client = client
        self._clock = clock or SystemClock()

    async def bring(self, desired: DesiredSet) -> Outcome:
        """Applies what differs and removes what tombstones name; one object's failure does not stop the others.

        Raises Unavailable or DeadlineExceeded when the API server cannot be asked at all.
        """
        outcome = Outcome()
        since = self._clock.now() - _REMEMBERED
        self.overwritten = {key: found for key, found in self.overwritten.items() if found.time >= since}
        live = await self.look(desired)
        await self._remove(desired, live, outcome)
        for _, wanted in groupby(desired.wanted, key=lambda w: w.kind):
            await self._apply_all(list(wanted), live, desired.hub_uid, outcome)
        return outcome

    async def look(self, desired: DesiredSet) -> Live:
        """What the cluster holds of the kinds of a set."""
        live = Live()
        for kind in sorted({w.kind for w in desired.wanted} | {b.kind for b in desired.buried}):
            if kind not in BY_KIND:
                live.problems[kind] = KindMissing(f"this agent knows no kind {kind}: update it")
                continue
            try:
                async for found in self._client.list(BY_KIND[kind], impersonate=PRINCIPAL):
                    live.objects[kind][found["metadata"]["name"]] = found
            except (KindMissing, PermissionDenied) as fault:
                live.problems[kind] = fault
        return live

    async def _apply_all(self, wanted: list[Wanted], live: Live, hub_uid: str, outcome: Outcome) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(item: Wanted) -> None:
            async with gate:
                failure = await self._apply(item, live, hub_uid, outcome)
            if failure:
                outcome.failures[item.kind, item.name] = Failure(item.kind, item.name, item.uid, item.generation, *failure)

        async with asyncio.TaskGroup() as group:
            for item in wanted:
                group.create_task(one(item), name=f"apply {item.kind} {item.name}")

    async def _apply(self, wanted: Wanted, live: Live, hub_uid: str, outcome: Outcome) -> tuple[str, str] | None:
        """Applies one object; why it failed, or None."""
        if problem := live.problems.get(wanted.kind):
            return problem.reason, advice(problem, wanted.kind)
        found = live.objects[wanted.kind].get(wanted.name)
        if found is not None and (refused := domain.foreign(found, wanted, hub_uid)):
            return refused
        if domain.body(wanted, found, hub_uid, "") is None:
            return None
        with _span("desired.apply", wanted) as span:
            body = domain.body(wanted, found, hub_uid, trace.traceparent() or wanted.traceparent)
            assert body is not None
            try:
                await self._client.apply(BY_KIND[wanted.kind], body, field_manager=FIELD_MANAGER, force=True, impersonate=PRINCIPAL)
            except Fault as fault:
                trace.fail(span, fault.reason)
                return fault.reason, advice(fault, wanted.kind)
        outcome.written += 1
        if found is not None and (overwritten := conflicts.conflicts(found, body, FIELD_MANAGER)):
            self.overwritten[wanted.kind, wanted.name] = Overwritten(wanted.uid, overwritten, self._clock.now())
            _log.warning("desired.overwritten", kind=wanted.kind, name=wanted.name, what=conflicts.text(overwritten))
        return None

    async def _remove(self, desired: DesiredSet, live: Live, outcome: Outcome) -> None:
        due: list[tuple[Buried, Object]] = []
        for buried in desired.buried:
            if problem := live.problems.get(buried.kind):
                outcome.removing[buried.kind, buried.name] = advice(problem, buried.kind)
                continue
            found = live.objects[buried.kind].get(buried.name)
            if found is None or not is_buried(found, buried, desired.hub_uid):
                outcome.removed.append(buried)
            else:
                due.append((buried, found))
        outcome.confirmation_needed = domain.brake(
            (b for b, found in due if not found["metadata"].get("deletionTimestamp")), live.ours(desired.hub_uid), desired.confirmed
        )
        for buried, found in due:
            if outcome.confirmation_needed and buried.generation > desired.confirmed:
                outcome.removing[buried.kind, buried.name] = outcome.confirmation_needed
            else:
                await self._remove_one(buried, found, outcome)

    async def _remove_one(self, buried: Buried, found: Object, outcome: Outcome) -> None:
        resource, metadata = BY_KIND[buried.kind], found["metadata"]
        marked = domain.annotations_of(found).get(domain.TOMBSTONE) == str(buried.generation)
        if marked and metadata.get("deletionTimestamp"):
            outcome.removing[buried.kind, buried.name] = ""
            return
        with _span("desired.remove", buried) as span:
            annotations = {domain.TOMBSTONE: str(buried.generation), domain.TRACEPARENT: trace.traceparent() or buried.traceparent}
            patch = {"metadata": {"uid": metadata["uid"], "annotations": {k: v for k, v in annotations.items() if v}}}
            try:
                if not marked:
                    await self._client.patch(resource, buried.name, patch, field_manager=FIELD_MANAGER, impersonate=PRINCIPAL)
                if not metadata.get("deletionTimestamp"):
                    await self._client.delete(resource, buried.name, uid=metadata["uid"], impersonate=PRINCIPAL)
                outcome.removing[buried.kind, buried.name] = ""
            except (NotFound, Conflict):
                outcome.removed.append(buried)  # the object of that uid is no longer there
            except Fault as fault:
                trace.fail(span, fault.reason)
                failure = Failure(buried.kind, buried.name, buried.uid, buried.generation, fault.reason, advice(fault, buried.kind))
                outcome.failures[buried.kind, buried.name] = failure


def _span(name: str, item: Wanted | Buried) -> AbstractContextManager[trace.Span]:
    """A span in the trace of the change that the hub made."""
    attributes: dict[str, str | int | bool] = {"kind": item.kind, "name": item.name, "generation": item.generation}
    return trace.span(name, parent=item.traceparent or None, kind=trace.SpanKind.CLIENT, attributes=attributes)


def is_buried(found: Object, buried: Buried, hub_uid: str) -> bool:
    """Whether an object is the one a tombstone names: uid and hub must both be the ones it was made with."""
    annotations = domain.annotations_of(found)
    return annotations.get(domain.UID) == buried.uid and annotations.get(domain.HUB_UID) == hub_uid


def advice(fault: Fault, kind: str) -> str:
    """What went wrong with a kind, and who can help."""
    if isinstance(fault, KindMissing) and kind in BY_KIND:
        return f"the cluster has no CRD for {kind}; its admin must apply the join manifest"
    if isinstance(fault, PermissionDenied):
        return f"{fault.message}; its admin must apply the join manifest"
    return fault.message
