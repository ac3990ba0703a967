"""What the servers of the bench answer, from memory, the same on either side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message_factory import GetMessageClass

from kubegems.tenancy.v1 import environment_pb2, environment_service_pb2, tenant_pb2
from libs.rest.encode import to_json
from libs.rpc import Call
from tests.bench.envoy import protos

TENANT = "tenants/acme"
RESOURCES = 500
BLOB_BYTES = 2_000_000
_NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
_Environment = environment_pb2.Environment


def environments() -> environment_service_pb2.ListEnvironmentsResponse:
    """500 environments with all that a list shows of them."""
    return environment_service_pb2.ListEnvironmentsResponse(environments=[_environment(i) for i in range(RESOURCES)])


def _environment(index: int) -> environment_pb2.Environment:
    made = _Environment(
        name=f"{TENANT}/projects/shop/environments/dev-{index}", uid=f"0198c0de-0000-7000-8000-{index:012}",
        display_name=f"Development {index}", description="Where the shop's next release is tried out", cluster="clusters/north",
        namespace=f"acme-shop-dev-{index}", quota={"limits.cpu": "4", "limits.memory": "8Gi", "requests.storage": "100Gi"},
        delete_policy=_Environment.DeletePolicy.values()[1], pod_security=_Environment.PodSecurity.values()[1],
        state=_Environment.State.READY, used={"limits.cpu": "1500m", "limits.memory": "3Gi"},
        hard={"limits.cpu": "4", "limits.memory": "8Gi", "requests.storage": "100Gi"}, etag='"7"',
    )  # fmt: skip
    made.limit_range.default.update({"cpu": "500m", "memory": "512Mi"})
    made_at = _NOW - timedelta(minutes=37 * index)
    for kind in ("NamespaceReady", "QuotaReady", "RightsReady"):
        condition = made.conditions.add(type=kind, status="True", reason="Applied", message="as asked for")
        condition.transition_time.FromDatetime(made_at + timedelta(seconds=3))
    made.create_time.FromDatetime(made_at)
    made.update_time.FromDatetime(made_at + timedelta(hours=5))
    made.report_time.FromDatetime(_NOW)
    return made


class Tenants:
    """Answers GetTenant from memory; the others are never called."""

    def __init__(self) -> None:
        self._tenant = tenant_pb2.Tenant(name=TENANT, uid="0" * 36, display_name="Acme", description="A team", etag='"7"', isolated=True)
        self._tenant.create_time.FromDatetime(_NOW)
        for method in protos.TENANTS.methods:
            setattr(self, method.name, self._get)

    async def _get(self, _request: Any, _call: Call) -> tenant_pb2.Tenant:
        return self._tenant


class Environments:
    """Answers ListEnvironments from memory; the others are never called."""

    def __init__(self) -> None:
        self._all = environments()
        for method in protos.ENVIRONMENTS.methods:
            setattr(self, method.name, self._list)

    async def _list(self, _request: Any, _call: Call) -> environment_service_pb2.ListEnvironmentsResponse:
        return self._all


class Bench:
    """Answers the bench's own service."""

    def __init__(self, service: Any) -> None:
        self._blob = HttpBody(content_type="application/json", data=b'{"x":"' + b"0123456789abcdef" * (BLOB_BYTES // 16) + b'"}')
        change: Any = GetMessageClass(service.methods_by_name["WatchChanges"].output_type)
        self._changes = []
        for i in range(1000):
            made = change(cluster="clusters/north", name=f"acme-shop-dev/pods/web-{i}", type="MODIFIED", counter=10**12 + i)
            made.time.FromDatetime(_NOW)
            self._changes.append(made)

    async def GetBlob(self, _request: Any, _call: Call) -> HttpBody:
        """2 MB."""
        return self._blob

    async def WatchChanges(self, request: Any, _call: Call) -> AsyncIterator[Any]:
        """One message each."""
        for i in range(request.count):
            yield self._changes[i % 1000]

    async def WatchChangeBatches(self, request: Any, _call: Call) -> AsyncIterator[HttpBody]:
        """The same as events, many in a chunk."""
        for start in range(0, request.count, request.batch):
            some = [self._changes[i % 1000] for i in range(start, min(start + request.batch, request.count))]
            yield HttpBody(content_type="text/event-stream", data=b"".join(b"data: " + to_json(change) + b"\n\n" for change in some))
