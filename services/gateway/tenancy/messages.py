"""Rows of tenancy as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubegems.tenancy.v1 import environment_pb2, member_pb2, project_pb2, quota_pb2, tenant_pb2
from libs import pg
from services.gateway.tenancy.domain import names, progress, quotas
from services.gateway.tenancy.domain.rows import Row

Environment = environment_pb2.Environment


def tenant(row: Row, *, full: bool, pending: Iterable[str] = ()) -> tenant_pb2.Tenant:
    """A tenant; without `full` only its name."""
    message = tenant_pb2.Tenant(name=names.tenant(row["name"]), display_name=row["display_name"])
    if full:
        message.state = tenant_pb2.Tenant.State.Value(row["state"])
        message.isolated = row["isolated"]
        message.pending.extend(pending)
        _common(message, row)
    return message


def project(row: Row, *, full: bool) -> project_pb2.Project:
    """A project; without `full` only its name."""
    message = project_pb2.Project(name=names.project(row["tenant"], row["name"]), display_name=row["display_name"])
    if full:
        message.state = project_pb2.Project.State.Value(row["state"])
        message.isolated = row["isolated"]
        _common(message, row)
    return message


def environment(row: Row, *, full: bool) -> Environment:
    """An environment with what its cluster reported; without `full` only its name."""
    message = Environment(name=names.environment(row["tenant"], row["project"], row["name"]), display_name=row["display_name"])
    if not full:
        return message
    _common(message, row)
    message.cluster = f"clusters/{row['cluster']}"
    message.namespace = row["namespace"]
    message.adopt_namespace = row["adopt_namespace"]
    message.quota.update(row["quota"])
    message.limit_range.default.update(row["limit_range"]["default"])
    message.limit_range.default_request.update(row["limit_range"]["default_request"])
    message.delete_policy = Environment.DeletePolicy.Value(row["delete_policy"])
    message.pod_security = Environment.PodSecurity.Value(row["pod_security"])
    message.isolation.environment = row["isolated"]
    message.state = Environment.State.Value(row["shown_state"])
    message.conditions.extend(_condition(c) for c in progress.conditions(row))
    message.used.update(row["used"] or {})
    message.hard.update(row["hard"] or {})
    if row["reported"]:
        message.report_time.FromDatetime(row["reported"])
    return message


def environment_name(tenant_: str, project_: str, environment_: str, uid: str) -> Environment:
    """An environment of which only name and uid are left."""
    return Environment(name=names.environment(tenant_, project_, environment_), uid=uid)


def project_name(tenant_: str, project_: str) -> project_pb2.Project:
    """A project of which only the name is left."""
    return project_pb2.Project(name=names.project(tenant_, project_))


def member(row: Row) -> member_pb2.Member:
    """A member."""
    scope = names.scope(row["tenant"], row["project"], row["environment"])
    message = member_pb2.Member(
        name=f"{scope}/members/{row['username']}",
        role=member_pb2.Member.Role.Value(row["role"].upper()),
        display_name=row["display_name"],
    )
    message.create_time.FromDatetime(row["created"])
    return message


def quota(row: Row, environments: Iterable[Mapping[str, str]]) -> quota_pb2.TenantQuota:
    """A tenant's quota on a cluster, with what its environments there hold."""
    message = quota_pb2.TenantQuota(
        name=f"{names.tenant(row['tenant'])}/quotas/{row['cluster']}",
        hard=row["hard"],
        allocated=quotas.allocated(row["hard"], environments),
        used=row["used"] or {},
        etag=pg.etag(row["version"]),
    )
    message.update_time.FromDatetime(row["updated"])
    return message


def _common(message: Any, row: Row) -> None:
    message.uid = str(row["uid"])
    message.description = row["description"]
    message.etag = pg.etag(row["version"])
    message.create_time.FromDatetime(row["created"])
    message.update_time.FromDatetime(row["updated"])


def _condition(condition: Mapping[str, Any]) -> environment_pb2.Environment.Condition:
    message = Environment.Condition(
        type=condition["type"], status=condition["status"], reason=condition["reason"], message=condition["message"]
    )
    if condition.get("time"):
        message.transition_time.FromJsonString(condition["time"])
    return message
