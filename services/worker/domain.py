"""Pure rules of the worker: what a usage report says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.faults import AlreadyExists, Invalid, NotFound, Precondition
from libs.kube import quantity


class JobNotFound(NotFound):
    """There is no such job, or its target is out of the caller's sight."""

    reason = "JOB_NOT_FOUND"


class ScheduleNotFound(NotFound):
    """There is no such schedule."""

    reason = "SCHEDULE_NOT_FOUND"


class ScheduleExists(AlreadyExists):
    """A schedule has that name."""

    reason = "SCHEDULE_EXISTS"


class BuiltInSchedule(Precondition):
    """The schedule comes with the release: only `disabled` can be changed."""

    reason = "BUILT_IN_SCHEDULE"


class QueueNotFound(NotFound):
    """There is no such queue."""

    reason = "QUEUE_NOT_FOUND"


class UnknownKind(Invalid):
    """No worker knows the kind, or the target does not fit it."""

    reason = "UNKNOWN_JOB_KIND"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an environment runs."""

    environment: str
    cluster: str
    namespace: str


def usage_report(place: Place, quotas: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Hard and used quota, pods by phase, and requests by resource, of one environment."""
    hard: dict[str, str] = {}
    used: dict[str, str] = {}
    for found in quotas:
        hard |= found.get("status", {}).get("hard", {})
        used |= found.get("status", {}).get("used", {})
    phases = Counter(str(pod.get("status", {}).get("phase", "Unknown")) for pod in pods)
    return {
        "environment": place.environment,
        "cluster": place.cluster,
        "namespace": place.namespace,
        "hard": hard,
        "used": used,
        "pods": dict(phases),
        "requests": _requests(pods),
    }


def _requests(pods: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    totals: dict[str, Any] = {}
    for pod in pods:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        for container in pod.get("spec", {}).get("containers", []):
            for resource, amount in container.get("resources", {}).get("requests", {}).items():
                totals[resource] = totals.get(resource, 0) + quantity.parse(amount)
    return {resource: quantity.format(total) for resource, total in sorted(totals.items())}
