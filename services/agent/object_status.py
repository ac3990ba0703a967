"""One object's status, from the copy of it: what the hub is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from services.agent.desired import conflicts, domain
from services.agent.desired.applier import Overwritten
from services.agent.desired.domain import Buried, Failure

Object = Mapping[str, Any]
_Status = wire.ObjectStatus
_LONGEST = 2048  # characters of a message
_MOST = 32  # conditions of an object


@dataclass(frozen=True, slots=True)
class Subject:
    """An object that a hub wanted here, as it is now."""

    kind: str
    name: str
    uid: str
    hub_uid: str
    generation: int
    found: Object

    @classmethod
    def of(cls, kind: str, found: Object) -> Subject | None:
        """None for an object that no hub made."""
        annotations = found["metadata"]["annotations"]
        uid, hub_uid = annotations.get(domain.UID, ""), annotations.get(domain.HUB_UID, "")
        if not (uid and hub_uid):
            return None
        generation = annotations.get(domain.GENERATION, "")
        return cls(kind, found["metadata"]["name"], uid, hub_uid, int(generation) if generation.isdigit() else 0, found)

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind, name and row uid."""
        return self.kind, self.name, self.uid

    @property
    def deleting(self) -> bool:
        """Whether it is being deleted."""
        return "deletionTimestamp" in self.found["metadata"]


def live(subject: Subject, held: str, holding: Iterable[str]) -> wire.ObjectStatus:
    """Status of an object that is there.

    Args:
        subject: the object.
        held: why its removal waits; empty when it does not.
        holding: what keeps its namespace.
    """
    status = subject.found["status"]
    message = _message(subject, status)
    if subject.deleting or held:
        message.state = _Status.REMOVING
        message.reason = "WAITING_FOR_CLUSTER" if subject.deleting else "CONFIRMATION_NEEDED"
        message.message = _text(held if not subject.deleting else "; ".join(_waiting(subject, status, holding)))
        return message
    ready = _condition(status, "Ready")
    current = ready is not None and _observed(ready, status) >= subject.found["metadata"].get("generation", 0)
    if ready is None or not current:
        message.state = _Status.APPLIED
        return message
    message.state = _Status.READY if ready.get("status") == "True" else _Status.DEGRADED
    message.reason = ready.get("reason", "")
    message.message = _text(ready.get("message", ""))
    return message


def tell_overwritten(message: wire.ObjectStatus, overwritten: Overwritten | None) -> None:
    """Adds condition FieldsOverwritten when another field manager's values were put back lately."""
    if overwritten is None or overwritten.uid != message.uid:
        return
    sentence = f"{conflicts.text(overwritten.conflicts)}; the hub's values were put back"
    told = message.conditions.add(type="FieldsOverwritten", status="True", reason="FIELD_CONFLICT", message=_text(sentence))
    told.transition_time.FromDatetime(overwritten.time)


def failed(failure: Failure) -> wire.ObjectStatus:
    """Status of an object that could not be applied or removed."""
    return wire.ObjectStatus(
        kind=failure.kind, name=failure.name, uid=failure.uid, generation=failure.generation, state=_Status.FAILED,
        reason=failure.reason, message=_text(failure.message),
    )  # fmt: skip


def gone(buried: Buried) -> wire.ObjectStatus:
    """Status of an object that a tombstone named and that is no longer there."""
    return wire.ObjectStatus(kind=buried.kind, name=buried.name, uid=buried.uid, generation=buried.generation, state=_Status.REMOVED)


def going(buried: Buried, message: str) -> wire.ObjectStatus:
    """Status of an object whose removal is under way, or waits for what the message says."""
    return wire.ObjectStatus(
        kind=buried.kind, name=buried.name, uid=buried.uid, generation=buried.generation, state=_Status.REMOVING,
        reason="WAITING_FOR_CLUSTER", message=_text(message),
    )  # fmt: skip


def _message(subject: Subject, status: Object) -> wire.ObjectStatus:
    message = wire.ObjectStatus(kind=subject.kind, name=subject.name, uid=subject.uid, generation=subject.generation)
    for condition in (status.get("conditions") or [])[:_MOST]:
        told = message.conditions.add(
            type=condition.get("type", ""),
            status=condition.get("status", ""),
            reason=condition.get("reason", ""),
            message=_text(condition.get("message", "")),
        )
        if since := condition.get("lastTransitionTime"):
            told.transition_time.FromDatetime(datetime.fromisoformat(since))
    message.used.update({name: str(value) for name, value in (status.get("used") or {}).items()})
    message.hard.update({name: str(value) for name, value in (status.get("hard") or {}).items()})
    return message


def _waiting(subject: Subject, status: Object, holding: Iterable[str]) -> Iterable[str]:
    """What holds a deletion up, in words."""
    if finalizers := subject.found["metadata"].get("finalizers"):
        yield "waits for " + ", ".join(finalizers)
    yield from holding
    ready = _condition(status, "Ready")
    if ready is not None and ready.get("status") != "True" and ready.get("message"):
        yield ready["message"]


def _condition(status: Object, kind: str) -> Object | None:
    return next((c for c in status.get("conditions") or [] if c.get("type") == kind), None)


def _observed(condition: Object, status: Object) -> int:
    return int(condition.get("observedGeneration") or status.get("observedGeneration") or 0)


def _text(text: str) -> str:
    return text[:_LONGEST]
