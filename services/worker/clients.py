"""What the worker asks of the gateway: whether a creator still may, where things run, and what clusters hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson

from kubegems.fleet.v1 import cluster_access_service_pb2 as access_pb2
from kubegems.fleet.v1 import cluster_pb2
from kubegems.fleet.v1 import upkeep_service_pb2 as upkeep_pb2
from kubegems.fleet.v1.cluster_access_service_pb2_grpc import ClusterAccessServiceStub
from kubegems.fleet.v1.upkeep_service_pb2_grpc import UpkeepServiceStub
from kubegems.identity.v1 import access_service_pb2 as identity_pb2
from kubegems.identity.v1.access_service_pb2_grpc import AccessServiceStub
from libs.faults import NotFound, PermissionDenied, Unavailable
from libs.rpc import Channel
from services.worker.domain import Place

COUNT_SECONDS = 30.0  # a cluster of 100,000 pods is counted in pages
_REFUSED = {HTTPStatus.FORBIDDEN: PermissionDenied, HTTPStatus.NOT_FOUND: NotFound}


class Gateway:
    """The gateway's internal services; each call raises Faults and has a deadline."""

    def __init__(self, channel: Channel) -> None:
        self._access = channel.stub(AccessServiceStub)
        self._clusters = channel.stub(ClusterAccessServiceStub)
        self._upkeep = channel.stub(UpkeepServiceStub)

    async def caller_keys(self) -> Mapping[str, bytes]:
        """Keys that caller contexts are signed with."""
        reply = await self._access.ListCallerKeys(identity_pb2.ListCallerKeysRequest())
        return {key.kid: key.public_key for key in reply.keys}

    async def allowed(self, username: str, permission: str, scope: str) -> bool:
        """Whether a user holds a permission at a scope now."""
        request = identity_pb2.CheckAccessRequest(username=username, permission=permission, scope=scope)
        return bool((await self._access.CheckAccess(request)).allowed)

    async def online_clusters(self) -> Sequence[str]:
        """Names of the clusters whose agents are connected."""
        reply = await self._clusters.ListLinks(access_pb2.ListLinksRequest())
        return [link.cluster for link in reply.links if link.online]

    async def place(self, environment: str) -> Place | None:
        """Where an environment runs; None when there is none."""
        try:
            reply = await self._clusters.LocateEnvironment(access_pb2.LocateEnvironmentRequest(environment=environment))
        except NotFound:
            return None
        return Place(environment, reply.cluster, reply.namespace)

    async def count_inventory(self, cluster: str) -> cluster_pb2.Inventory:
        """Counts a cluster's inventory and keeps it on the cluster."""
        request = access_pb2.CountInventoryRequest(cluster=cluster)
        return (await self._clusters.CountInventory(request, timeout=COUNT_SECONDS)).inventory

    async def kubernetes(self, cluster: str, username: str, path: str, query: str = "") -> Mapping[str, Any]:
        """A Kubernetes object or list, read as a user."""
        request = access_pb2.RequestKubernetesRequest(cluster=cluster, username=username, method="GET", path=path, query=query)
        reply = await self._clusters.RequestKubernetes(request)
        body: Mapping[str, Any] = orjson.loads(reply.body)
        if reply.status == HTTPStatus.OK:
            return body
        kind = _REFUSED.get(HTTPStatus(reply.status), Unavailable)
        raise kind(f"the cluster answered {reply.status}: {body.get('message', 'no message')}")

    async def certificates(self) -> Sequence[upkeep_pb2.ListAgentCertificatesResponse.Certificate]:
        """The newest good certificate of each cluster."""
        return (await self._upkeep.ListAgentCertificates(upkeep_pb2.ListAgentCertificatesRequest())).certificates

    async def environments(self) -> Sequence[upkeep_pb2.ListEnvironmentUsagesResponse.Usage]:
        """What environments may use and use."""
        return (await self._upkeep.ListEnvironmentUsages(upkeep_pb2.ListEnvironmentUsagesRequest())).usages

    async def quotas(self) -> Sequence[upkeep_pb2.ListQuotaUsagesResponse.Usage]:
        """What tenants may use of clusters."""
        return (await self._upkeep.ListQuotaUsages(upkeep_pb2.ListQuotaUsagesRequest())).usages

    async def pod_metrics(self, cluster: str) -> upkeep_pb2.ReadPodMetricsResponse:
        """What pods use now, by namespace."""
        return await self._upkeep.ReadPodMetrics(upkeep_pb2.ReadPodMetricsRequest(cluster=cluster), timeout=COUNT_SECONDS)

    async def reconcile(self, tenant: str) -> upkeep_pb2.ReconcileTenantResponse:
        """Compares a tenant's desired state with its rows, and puts right what is not so."""
        return await self._upkeep.ReconcileTenant(upkeep_pb2.ReconcileTenantRequest(tenant=tenant), timeout=COUNT_SECONDS)
