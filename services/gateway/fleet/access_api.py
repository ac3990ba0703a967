"""ClusterAccessService: how the hub's other services reach a cluster, through the tunnel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from uuid import UUID

from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from kubegems.agent.v1 import inventory_service_pb2
from kubegems.fleet.v1 import cluster_access_service_pb2 as wire
from libs import pg
from libs.faults import Invalid
from libs.kube.principal import Principal as ServicePrincipal
from libs.pg import Database
from libs.rpc.call import Call
from libs.tunnel.kubernetes import Request
from services.gateway.fleet import clusters_store, interest
from services.gateway.tenancy import environments_store
from services.gateway.tenancy.domain import names

MOST_BYTES = 16 * 1024 * 1024
COUNT_SECONDS = 30.0
_COUNT = inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"].methods_by_name["GetInventory"]
_ENVIRONMENT = "tenants/{tenant}/projects/{project}/environments/{environment}"
_INVENTORY = ServicePrincipal("gems:service:inventory")


class Links(Protocol):
    """The tunnels, as far as they are needed here."""

    def online(self, uid: str) -> bool:
        """Whether a cluster's agent is connected."""
        ...

    async def call(
        self, uid: str, method: MethodDescriptor, request: Message, principal: Any, timeout: float = ..., *, cluster: str = ...
    ) -> Any:
        """Calls one of the agent's services; raises Unavailable when it is offline."""
        ...

    async def kubernetes(self, uid: str, request: Request, body: bytes | None, principal: Any, *, cluster: str = ...) -> Any:
        """Sends a Kubernetes request; the exchange has `status`, `whole(most)` and is an async context."""
        ...


class ClusterAccessService:
    """Serves worker and msgbus.

    Args:
        database: for looking up before the call goes out; no transaction stays open meanwhile.
        links: the tunnels.
        principal: user name and cluster uid to the principal to act as; raises NotFound for an unknown or disabled user.
    """

    def __init__(self, *, database: Database, links: Links, principal: Callable[[str, str], Awaitable[Any]]) -> None:
        self._database = database
        self._links = links
        self._principal = principal

    async def ListLinks(self, request: wire.ListLinksRequest, call: Call) -> wire.ListLinksResponse:  # noqa: ARG002 -- empty
        """All clusters, with whether their agents are connected, to this gateway or another."""
        rows = await clusters_store.all_links(await pg.tx(call))
        links = [
            wire.ListLinksResponse.Link(cluster=f"clusters/{row['name']}", uid=str(row["uid"]), online=self._links.online(str(row["uid"])))
            for row in rows
        ]
        return wire.ListLinksResponse(links=links)

    async def ReportInterest(self, request: wire.ReportInterestRequest, call: Call) -> wire.ReportInterestResponse:
        """Keeps what one replica's subscribers watch; INVALID_ARGUMENT for a uid that is none."""
        try:
            wanted = {UUID(one.cluster_uid): list(one.resources) for one in request.clusters}
        except ValueError as error:
            raise Invalid.one("clusters.cluster_uid", "must be a UUID") from error
        await interest.keep(await pg.tx(call), request.replica, wanted)
        return wire.ReportInterestResponse()

    async def LocateEnvironment(self, request: wire.LocateEnvironmentRequest, call: Call) -> wire.LocateEnvironmentResponse:
        """Where an environment runs; NotFound."""
        tenant, project, environment = names.given(request.environment, "environment", _ENVIRONMENT)
        row = await environments_store.get(await pg.tx(call), tenant, project, environment)
        return wire.LocateEnvironmentResponse(cluster=f"clusters/{row['cluster']}", namespace=row["namespace"])

    async def CountInventory(self, request: wire.CountInventoryRequest, call: Call) -> wire.CountInventoryResponse:
        """Counts, and keeps it on the cluster; NotFound, Unavailable with a delay when the cluster is offline."""
        uid, cluster = await self._uid(request.cluster)
        counting = inventory_service_pb2.GetInventoryRequest()
        reply = await self._links.call(str(uid), _COUNT, counting, _INVENTORY, COUNT_SECONDS, cluster=cluster)
        kept = json_format.MessageToDict(reply.inventory)
        await clusters_store.keep_inventory(await pg.tx(call), uid, kept)
        return wire.CountInventoryResponse(inventory=reply.inventory)

    async def RequestKubernetes(self, request: wire.RequestKubernetesRequest, call: Call) -> wire.RequestKubernetesResponse:
        """The API server's own answer to a user's request; NotFound, Unavailable, Exhausted for more than 16 MiB."""
        uid, cluster = await self._uid(request.cluster)
        principal = await self._principal(request.username, str(uid))
        call.resources += [request.cluster, f"users/{request.username}"]
        asked = Request(method=request.method, path=request.path, query=request.query, headers=(("accept", b"application/json"),))
        exchange = await self._links.kubernetes(str(uid), asked, None, principal, cluster=cluster)
        async with exchange:
            return wire.RequestKubernetesResponse(status=exchange.status, body=await exchange.whole(MOST_BYTES))

    async def _uid(self, name: str) -> tuple[UUID, str]:
        (cluster,) = names.parts(name)
        async with self._database.transaction(readonly=True) as tx:
            return (await clusters_store.get(tx, cluster))["uid"], cluster
