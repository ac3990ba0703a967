"""Preview: what would change in the cluster if the desired state were applied now."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from kubegems.agent.v1 import desired_state_service_pb2 as desired_wire
from kubegems.agent.v1 import preview_service_pb2 as wire
from kubegems.fleet.v1 import desired_diff_pb2
from libs.faults import PermissionDenied, Unavailable
from libs.kube import Principal
from libs.rpc.call import Call
from services.agent.desired import conflicts, domain
from services.agent.desired.applier import FIELD_MANAGER, PRINCIPAL, Applier, Live, advice, is_buried
from services.agent.desired.domain import DesiredSet, Object, Wanted
from services.agent.desired.follower import FETCH, Follower, Link
from services.agent.desired.kept import parse

_SECONDS = 15.0
_LONGEST = 1024  # characters of a value
_Diff = desired_diff_pb2.ObjectDiff


class Preview:
    """PreviewService; serves nothing before `of` was called.

    Args:
        principal_of: as whom a call comes; raises when it came under no grant.
    """

    def __init__(self, *, principal_of: Callable[[Call], Principal]) -> None:
        self._principal_of = principal_of
        self._parts: tuple[Link, Applier, Follower] | None = None

    def of(self, link: Link, applier: Applier, follower: Follower) -> None:
        """What it looks at."""
        self._parts = (link, applier, follower)

    async def PreviewDesiredState(self, _request: wire.PreviewDesiredStateRequest, call: Call) -> wire.PreviewDesiredStateResponse:
        """Fetches the set afresh and compares; changes and remembers nothing."""
        if self._principal_of(call).user != PRINCIPAL.user:
            raise PermissionDenied(f"only {PRINCIPAL.user} may ask for this")
        if self._parts is None:
            raise Unavailable("the agent is starting")
        link, applier, follower = self._parts
        reply = await link.call(FETCH, desired_wire.FetchDesiredStateRequest(), timeout=_SECONDS)
        diff = desired_diff_pb2.DesiredDiff(
            generation=reply.generation, applied_generation=follower.applied_generation, paused=reply.paused
        )
        desired = parse(reply)
        diff.confirmation_needed = follower.refusal(desired)
        if not diff.confirmation_needed:
            compare(desired, await applier.look(desired), diff)
        return wire.PreviewDesiredStateResponse(diff=diff)


def compare(desired: DesiredSet, live: Live, diff: desired_diff_pb2.DesiredDiff) -> None:
    """Fills in what would change, removals first."""
    due = []
    for buried in desired.buried:
        found = live.objects[buried.kind].get(buried.name)
        if problem := live.problems.get(buried.kind):
            diff.objects.add(
                kind=buried.kind, name=buried.name, action=_Diff.BLOCKED, reason=problem.reason, message=advice(problem, buried.kind)
            )
        elif found is not None and is_buried(found, buried, desired.hub_uid):
            due.append((buried, found))
    waiting = (buried for buried, found in due if not found["metadata"].get("deletionTimestamp"))
    diff.confirmation_needed = domain.brake(waiting, live.ours(desired.hub_uid), desired.confirmed)
    for buried, found in due:
        told = diff.objects.add(kind=buried.kind, name=buried.name, action=_Diff.REMOVE)
        if found["metadata"].get("deletionTimestamp"):
            told.message = "it is being removed already"
        elif diff.confirmation_needed and buried.generation > desired.confirmed:
            told.action, told.reason, told.message = _Diff.BLOCKED, "CONFIRMATION_NEEDED", diff.confirmation_needed
    for wanted in desired.wanted:
        if (told_of := _wanted(wanted, live, desired.hub_uid)) is None:
            diff.unchanged += 1
        else:
            diff.objects.append(told_of)


def _wanted(wanted: Wanted, live: Live, hub_uid: str) -> desired_diff_pb2.ObjectDiff | None:
    told = desired_diff_pb2.ObjectDiff(kind=wanted.kind, name=wanted.name)
    found = live.objects[wanted.kind].get(wanted.name)
    if problem := live.problems.get(wanted.kind):
        told.action, told.reason, told.message = _Diff.BLOCKED, problem.reason, advice(problem, wanted.kind)
    elif found is None:
        told.action = _Diff.CREATE
    elif refused := domain.foreign(found, wanted, hub_uid):
        told.action = _Diff.BLOCKED
        told.reason, told.message = refused
    elif (body := domain.body(wanted, found, hub_uid, "")) is None:
        return None
    else:
        told.action = _Diff.UPDATE
        _fields(told, found, body)
    return told


def _fields(told: desired_diff_pb2.ObjectDiff, found: Object, body: Object) -> None:
    for field in conflicts.differences(found, body):
        told.fields.add(path=field.path, live=_json(field.live), desired=_json(field.desired))
    for conflict in conflicts.conflicts(found, body, FIELD_MANAGER):
        told.conflicts.add(manager=conflict.manager, paths=conflict.paths)


def _json(value: object) -> str:
    return "" if value is None else orjson.dumps(value).decode()[:_LONGEST]
