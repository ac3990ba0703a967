"""What the worker asks of the gateway: whether a creator still may, and what clusters hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson

from kubegems.fleet.v1 import cluster_access_service_pb2 as access_pb2
from kubegems.fleet.v1 import cluster_pb2
from kubegems.identity.v1 import access_service_pb2
from libs.faults import NotFound, PermissionDenied, Unavailable
from services.worker.domain import Place

READ_SECONDS = 10.0


class Channel(Protocol):
    """An internal channel: one typed unary call with a deadline; raises Faults."""

    async def call(self, path: str, request: Any, response_class: Any, *, timeout: float) -> Any:
        """The reply of `/package.Service/Method`."""
        ...


class Gateway:
    """The gateway's internal services."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def allowed(self, username: str, permission: str, scope: str) -> bool:
        """Whether a user holds a permission at a scope now."""
        request = access_service_pb2.CheckAccessRequest(username=username, permission=permission, scope=scope)
        path = "/kubegems.identity.v1.AccessService/CheckAccess"
        reply = await self._channel.call(path, request, access_service_pb2.CheckAccessResponse, timeout=READ_SECONDS)
        return bool(reply.allowed)

    async def online_clusters(self) -> Sequence[str]:
        """Names of the clusters whose agents are connected."""
        path = "/kubegems.fleet.v1.ClusterAccessService/ListLinks"
        reply = await self._channel.call(path, access_pb2.ListLinksRequest(), access_pb2.ListLinksResponse, timeout=READ_SECONDS)
        return [link.cluster for link in reply.links if link.online]

    async def place(self, environment: str) -> Place | None:
        """Where an environment runs; None when there is none."""
        path = "/kubegems.fleet.v1.ClusterAccessService/LocateEnvironment"
        request = access_pb2.LocateEnvironmentRequest(environment=environment)
        try:
            reply = await self._channel.call(path, request, access_pb2.LocateEnvironmentResponse, timeout=READ_SECONDS)
        except NotFound:
            return None
        return Place(environment, reply.cluster, reply.namespace)

    async def count_inventory(self, cluster: str) -> cluster_pb2.Inventory:
        """Counts a cluster's inventory and keeps it on the cluster."""
        path = "/kubegems.fleet.v1.ClusterAccessService/CountInventory"
        request = access_pb2.CountInventoryRequest(cluster=cluster)
        reply = await self._channel.call(path, request, access_pb2.CountInventoryResponse, timeout=30.0)
        inventory: cluster_pb2.Inventory = reply.inventory
        return inventory

    async def kubernetes(self, cluster: str, username: str, path: str, query: str = "") -> Mapping[str, Any]:
        """A Kubernetes object or list, read as a user."""
        request = access_pb2.RequestKubernetesRequest(cluster=cluster, username=username, method="GET", path=path, query=query)
        method = "/kubegems.fleet.v1.ClusterAccessService/RequestKubernetes"
        reply = await self._channel.call(method, request, access_pb2.RequestKubernetesResponse, timeout=READ_SECONDS)
        body: Mapping[str, Any] = orjson.loads(reply.body)
        if reply.status == 200:  # noqa: PLR2004 -- HTTP
            return body
        message = str(body.get("message", "no message"))
        kind = {403: PermissionDenied, 404: NotFound}.get(reply.status, Unavailable)
        raise kind(f"the cluster answered {reply.status}: {message}")
