"""UpkeepService: what the platform's own jobs need of the gateway's data; read, compared, put right."""

from __future__ import annotations

from collections import defaultdict
from http import HTTPStatus
from typing import Any

import orjson

from kubegems.fleet.v1 import upkeep_service_pb2 as wire
from libs import pg
from libs.faults import Unavailable
from libs.kube import quantity
from libs.kube.principal import Principal as ServicePrincipal
from libs.pg import Database, Record, Tx
from libs.rpc.call import Call
from libs.tunnel.kubernetes import Request
from services.gateway.fleet import clusters_store, desired, upkeep_store
from services.gateway.fleet.access_api import MOST_BYTES, Links
from services.gateway.fleet.desired import Ref
from services.gateway.tenancy import derive, environments_store, tenants_store
from services.gateway.tenancy.domain import names, quotas

_INVENTORY = ServicePrincipal("gems:service:inventory")
_METRICS = "/apis/metrics.k8s.io/v1beta1/pods"


class UpkeepService:
    """Serves the worker.

    Args:
        database: for looking up before a call goes out; no transaction stays open meanwhile.
        links: the tunnels.
    """

    def __init__(self, *, database: Database, links: Links) -> None:
        self._database = database
        self._links = links

    async def ListAgentCertificates(self, request: wire.ListAgentCertificatesRequest, call: Call) -> wire.ListAgentCertificatesResponse:
        """The newest good certificate of each cluster."""
        del request
        reply = wire.ListAgentCertificatesResponse()
        for row in await upkeep_store.certificates(await pg.tx(call)):
            reply.certificates.add(cluster=f"clusters/{row['cluster']}", serial=row["serial"]).expire_time.FromDatetime(row["expires"])
        return reply

    async def ListEnvironmentUsages(self, request: wire.ListEnvironmentUsagesRequest, call: Call) -> wire.ListEnvironmentUsagesResponse:
        """What environments may use and use."""
        del request
        reply = wire.ListEnvironmentUsagesResponse()
        for row in await upkeep_store.environments(await pg.tx(call)):
            usage = reply.usages.add(
                environment=names.environment(row["tenant"], row["project"], row["name"]), cluster=f"clusters/{row['cluster']}",
                namespace=row["namespace"], hard=row["hard"] or row["quota"], used=row["used"],
            )  # fmt: skip
            if row["reported"] is not None:
                usage.report_time.FromDatetime(row["reported"])
        return reply

    async def ListQuotaUsages(self, request: wire.ListQuotaUsagesRequest, call: Call) -> wire.ListQuotaUsagesResponse:
        """What tenants may use of clusters, and what their environments take of it."""
        del request
        reply = wire.ListQuotaUsagesResponse()
        for row in await upkeep_store.quotas(await pg.tx(call)):
            reply.usages.add(
                tenant=names.tenant(row["tenant"]), cluster=f"clusters/{row['cluster']}", hard=row["hard"], used=row["used"],
                allocated=quotas.allocated(row["hard"], row["environments"]), environments=len(row["environments"]),
            )  # fmt: skip
        return reply

    async def ReadPodMetrics(self, request: wire.ReadPodMetricsRequest, call: Call) -> wire.ReadPodMetricsResponse:
        """What the pods of each namespace use now; `served` is false where there is no metrics server."""
        (cluster,) = names.parts(request.cluster)
        async with self._database.transaction(readonly=True) as tx:
            uid = (await clusters_store.get(tx, cluster))["uid"]
        call.resources.append(request.cluster)
        asked = Request(method="GET", path=_METRICS, query="", headers=(("accept", b"application/json"),))
        exchange = await self._links.kubernetes(str(uid), asked, None, _INVENTORY, cluster=cluster)
        async with exchange:
            body = await exchange.whole(MOST_BYTES)
        if exchange.status in (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE):
            return wire.ReadPodMetricsResponse(served=False)
        if exchange.status != HTTPStatus.OK:
            raise Unavailable(f"the cluster's metrics answered {exchange.status}")
        return wire.ReadPodMetricsResponse(served=True, sums=_sums(orjson.loads(body).get("items", [])))

    async def ReconcileTenant(self, request: wire.ReconcileTenantRequest, call: Call) -> wire.ReconcileTenantResponse:
        """Derives a tenant's objects anew; those that were not so, or should not be, are put right. NotFound."""
        (tenant,) = names.parts(request.tenant)
        tx = await pg.tx(call)
        row = await tenants_store.get(tx, tenant, lock="FOR UPDATE OF t")
        call.tenant = request.tenant
        if row["state"] == "DELETING":
            return wire.ReconcileTenantResponse()
        before = {_key(found): found for found in await upkeep_store.objects_of(tx, tenant)}
        wanted = await _derived(tx, row)
        for found in before.values():
            if (found["cluster_uid"], found["uid"]) not in wanted:
                await desired.remove(tx, found["cluster_uid"], Ref(found["kind"], found["name"], found["uid"], tenant))
        after = {_key(found): found for found in await upkeep_store.objects_of(tx, tenant)}
        changed = {key for key in before.keys() | after.keys() if _generation(before.get(key)) != _generation(after.get(key))}
        return wire.ReconcileTenantResponse(repaired=sorted(" ".join(key) for key in changed), compared=len(before.keys() | after.keys()))


async def _derived(tx: Tx, tenant: Record) -> set[tuple[Any, Any]]:
    """Writes all that a tenant's rows stand for; (cluster, uid of the row) of each."""
    wanted = set()
    for quota in await upkeep_store.quotas_of(tx, tenant["name"]):
        await derive.presence(tx, tenant, quota["cluster_uid"], quota["hard"])
        wanted.add((quota["cluster_uid"], tenant["uid"]))
    for found in await upkeep_store.environments_of(tx, tenant["name"]):
        env = await environments_store.get(tx, tenant["name"], found["project"], found["name"], lock=True)
        await derive.environment(tx, env, network_too=False)
        wanted.add((env["cluster_uid"], env["uid"]))
    return wanted


def _key(row: Record) -> tuple[str, str, str]:
    return row["cluster"], row["kind"], row["name"]


def _generation(row: Record | None) -> int:
    return 0 if row is None else int(row["generation"])


def _sums(pods: list[Any]) -> list[wire.ReadPodMetricsResponse.Sum]:
    cpu: dict[str, Any] = defaultdict(int)
    memory: dict[str, Any] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for pod in pods:
        namespace = pod["metadata"]["namespace"]
        count[namespace] += 1
        for container in pod.get("containers", []):
            usage = container.get("usage", {})
            cpu[namespace] += quantity.parse(usage.get("cpu", "0"))
            memory[namespace] += quantity.parse(usage.get("memory", "0"))
    return [
        wire.ReadPodMetricsResponse.Sum(namespace=name, cpu=float(cpu[name]), memory=float(memory[name]), pods=pods_)
        for name, pods_ in sorted(count.items())
    ]
