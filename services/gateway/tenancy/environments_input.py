"""What a caller asks of an environment, as the columns of its row, checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kubegems.tenancy.v1 import environment_pb2
from libs.faults import Invalid, PermissionDenied, Violation
from libs.pg import Record
from libs.rpc.call import Call
from services.gateway.tenancy.domain import limits, namespaces, quotas
from services.gateway.tenancy.domain.rows import Row

Environment = environment_pb2.Environment
MUTABLE = ("display_name", "description", "quota", "limit_range", "delete_policy", "isolation", "pod_security", "adopt_namespace")
IMMUTABLE = ("cluster", "namespace")
KNOWN = (*MUTABLE, *IMMUTABLE, "isolation.environment")
ADOPT = "tenancy.environments.adopt"
RELAX = "tenancy.environments.relaxPodSecurity"


def columns(message: Environment, changed: Collection[str], row: Record | None = None) -> dict[str, Any]:
    """The columns as they should be: from the message what `changed` names, the rest from the row or the defaults; Invalid."""
    old = dict(row) if row is not None else dict(_DEFAULTS)
    given = _given(message)
    if "isolation.environment" in changed:
        changed = {*changed, "isolation"}
    new = old | {column: value for field, (column, value) in given.items() if field in changed}
    _check(message, changed)
    return new


def _given(message: Environment) -> dict[str, tuple[str, Any]]:
    policy = message.delete_policy or Environment.DELETE_NAMESPACE
    security = message.pod_security or Environment.BASELINE
    limit_range = message.limit_range
    ranges = {"default": dict(limit_range.default), "default_request": dict(limit_range.default_request)}
    return {
        "display_name": ("display_name", message.display_name),
        "description": ("description", message.description),
        "quota": ("quota", dict(message.quota)),
        "limit_range": ("limit_range", ranges if any(ranges.values()) else limits.DEFAULT),
        "delete_policy": ("delete_policy", Environment.DeletePolicy.Name(policy)),
        "isolation": ("isolated", message.isolation.environment),
        "pod_security": ("pod_security", Environment.PodSecurity.Name(security)),
        "adopt_namespace": ("adopt_namespace", message.adopt_namespace),
    }


_DEFAULTS: dict[str, Any] = dict(_given(Environment()).values())


def _check(message: Environment, changed: Collection[str]) -> None:
    found: list[Violation] = []
    if "quota" in changed:
        found += quotas.check("environment.quota", message.quota)
    if "limit_range" in changed:
        found += limits.check("environment.limit_range", message.limit_range.default, message.limit_range.default_request)
    quotas.refuse(found)


def refuse_changed(message: Environment, changed: Collection[str], row: Record) -> None:
    """Raises Invalid when an Update gives another cluster or namespace than the environment has."""
    kept = {"cluster": f"clusters/{row['cluster']}", "namespace": row["namespace"]}
    wrong = [
        Violation(f"environment.{field}", f"cannot be changed from {kept[field]} to {getattr(message, field)}")
        for field in IMMUTABLE
        if field in changed and getattr(message, field) != kept[field]
    ]
    quotas.refuse(wrong)


def refuse_privileges(call: Call, new: Row, old: Row | None = None) -> None:
    """Raises PermissionDenied for what only a platform admin may ask: adopting a namespace, relaxing pod security."""
    before = old if old is not None else _DEFAULTS
    if new["adopt_namespace"] and not before["adopt_namespace"] and not call.caller.allows(ADOPT):
        raise PermissionDenied(
            "environment.adopt_namespace: only a platform admin may take over an existing namespace", {"permission": ADOPT}
        )
    privileged = new["pod_security"] == "PRIVILEGED" and before["pod_security"] != "PRIVILEGED"
    if privileged and not call.caller.allows(RELAX):
        raise PermissionDenied(f"environment.pod_security: only a platform admin may set {new['pod_security']}", {"permission": RELAX})


def check_namespace(call: Call, namespace: str, tenant: str) -> None:
    """Raises Invalid for a namespace that the caller may not have."""
    problem = namespaces.problem(namespace, tenant, platform=call.caller.allows(ADOPT))
    if problem:
        raise Invalid.one("environment.namespace", problem)
