"""Columns: the few facts of a kind that lists and live views show; strings, short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from libs.kube import resources

Object = Mapping[str, Any]
Columns = dict[str, str]
_LONGEST = 1024  # characters of a value; an event's message is the longest there is


def columns_of(key: str, found: Object) -> Columns:
    """The columns of an object of a kind (`Resource.key`); what is absent has no column."""
    metadata = found["metadata"]
    facts: dict[str, Any] = {"created": metadata.get("creationTimestamp")}
    if metadata.get("deletionTimestamp"):
        facts["deleting"] = metadata["deletionTimestamp"]
    facts |= _BY_KEY.get(key, _conditions)(found)
    return {name: _text(value)[:_LONGEST] for name, value in facts.items() if value is not None and value != ""}


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _pod(found: Object) -> dict[str, Any]:
    spec, status = found.get("spec") or {}, found.get("status") or {}
    containers = status.get("containerStatuses") or []
    waiting = [c["state"]["waiting"].get("reason", "") for c in containers if (c.get("state") or {}).get("waiting")]
    return {
        "phase": status.get("phase"),
        "ready": f"{sum(bool(c.get('ready')) for c in containers)}/{len(spec.get('containers') or [])}",
        "restarts": sum(c.get("restartCount", 0) for c in containers),
        "node": spec.get("nodeName"),
        "podIP": status.get("podIP"),
        "reason": status.get("reason") or next(filter(None, waiting), None),
    }


def _workload(*names: str) -> Callable[[Object], dict[str, Any]]:
    def facts(found: Object) -> dict[str, Any]:
        spec, status = found.get("spec") or {}, found.get("status") or {}
        return {"replicas": spec.get("replicas")} | {name: status.get(name, 0) for name in names}

    return facts


def _daemon_set(found: Object) -> dict[str, Any]:
    status = found.get("status") or {}
    return {name: status.get(name, 0) for name in ("desiredNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable")}


def _job(found: Object) -> dict[str, Any]:
    spec, status = found.get("spec") or {}, found.get("status") or {}
    counts = {name: status.get(name, 0) for name in ("active", "succeeded", "failed")}
    return {"completions": spec.get("completions"), "completionTime": status.get("completionTime"), **counts}


def _node(found: Object) -> dict[str, Any]:
    spec, status = found.get("spec") or {}, found.get("status") or {}
    return {
        "ready": _condition(status, "Ready"),
        "unschedulable": bool(spec.get("unschedulable")),
        "version": (status.get("nodeInfo") or {}).get("kubeletVersion"),
    }


def _event(found: Object) -> dict[str, Any]:
    about = found.get("involvedObject") or {}
    names = ("type", "reason", "message", "count", "lastTimestamp")
    about_names = {"objectKind": "kind", "objectName": "name", "objectUid": "uid"}
    return {name: found.get(name) for name in names} | {name: about.get(source) for name, source in about_names.items()}


def _service(found: Object) -> dict[str, Any]:
    spec = found.get("spec") or {}
    ports = ",".join(f"{p.get('port')}/{p.get('protocol', 'TCP')}" for p in (spec.get("ports") or [])[:16])
    return {"type": spec.get("type"), "clusterIP": spec.get("clusterIP"), "ports": ports}


def _ingress(found: Object) -> dict[str, Any]:
    spec = found.get("spec") or {}
    return {"class": spec.get("ingressClassName"), "hosts": ",".join(r.get("host", "*") for r in (spec.get("rules") or [])[:16])}


def _claim(found: Object) -> dict[str, Any]:
    spec, status = found.get("spec") or {}, found.get("status") or {}
    return {
        "phase": status.get("phase"),
        "capacity": (status.get("capacity") or {}).get("storage"),
        "storageClass": spec.get("storageClassName"),
        "volume": spec.get("volumeName"),
    }


def _quota(found: Object) -> dict[str, Any]:
    status = found.get("status") or {}
    pairs = [(word, name, value) for word in ("used", "hard") for name, value in (status.get(word) or {}).items()]
    return {f"{word}.{name}": value for word, name, value in pairs[:64]}


def _namespace(found: Object) -> dict[str, Any]:
    return {"phase": (found.get("status") or {}).get("phase")}


def _conditions(found: Object) -> dict[str, Any]:
    """What any kind with conditions has, such as ours."""
    status = found.get("status")
    return {"ready": _condition(status, "Ready")} if isinstance(status, Mapping) else {}


def _condition(status: Object, kind: str) -> str | None:
    found = status.get("conditions")
    return next((c.get("status") for c in found if c.get("type") == kind), None) if isinstance(found, list) else None


_BY_KEY: dict[str, Callable[[Object], dict[str, Any]]] = {
    resources.PODS.key: _pod,
    resources.NODES.key: _node,
    resources.EVENTS.key: _event,
    resources.NAMESPACES.key: _namespace,
    resources.SERVICES.key: _service,
    resources.INGRESSES.key: _ingress,
    resources.PERSISTENT_VOLUME_CLAIMS.key: _claim,
    resources.RESOURCE_QUOTAS.key: _quota,
    resources.JOBS.key: _job,
    resources.DAEMON_SETS.key: _daemon_set,
    resources.DEPLOYMENTS.key: _workload("readyReplicas", "updatedReplicas", "availableReplicas"),
    resources.REPLICA_SETS.key: _workload("readyReplicas", "availableReplicas"),
    resources.STATEFUL_SETS.key: _workload("readyReplicas", "updatedReplicas", "currentReplicas"),
}
