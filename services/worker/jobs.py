"""The kinds of job that the worker knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from google.protobuf import struct_pb2
from google.protobuf.message import Message

from kubegems.fleet.v1 import cluster_pb2
from libs.jobs import Context, GiveUp, Kind
from services.worker.domain import Place, usage_report

INVENTORY = "cluster-inventory"
USAGE_REPORT = "environment-usage-report"
PAGE = 500


class Clusters(Protocol):
    """Reads clusters through the gateway."""

    async def count_inventory(self, cluster: str) -> cluster_pb2.Inventory:
        """Counts and keeps a cluster's inventory."""
        ...

    async def kubernetes(self, cluster: str, username: str, path: str, query: str = "") -> Mapping[str, Any]:
        """Reads as a user."""
        ...


class Places(Protocol):
    """Finds where an environment runs."""

    async def __call__(self, environment: str) -> Place | None:
        """Cluster and namespace of an environment."""
        ...


def kinds(clusters: Clusters, places: Places) -> list[Kind]:
    """The kinds that clusters and users ask for."""

    async def inventory(context: Context, _payload: Message) -> Message:
        context.progress(10, "counting nodes and pods")
        return await clusters.count_inventory(context.job.target)

    async def report(context: Context, _payload: Message) -> Message:
        place = await places(context.job.target)
        if place is None:
            raise GiveUp(f"{context.job.target} is not there any more")
        username = context.job.owner.removeprefix("users/")
        base = f"/api/v1/namespaces/{place.namespace}"
        context.progress(10, "reading the quota")
        quotas = await clusters.kubernetes(place.cluster, username, f"{base}/resourcequotas")
        pods = await _pods(context, clusters, place, username)
        context.progress(90, "adding up")
        made = struct_pb2.Struct()
        made.update(usage_report(place, quotas.get("items", []), pods))
        return made

    return [
        Kind(INVENTORY, targets="clusters", depth=2, permission="jobs.jobs.create", handler=inventory, unique=True),
        Kind(USAGE_REPORT, targets="tenants", depth=6, permission="jobs.jobs.create", handler=report),
    ]


async def _pods(context: Context, clusters: Clusters, place: Place, username: str) -> list[Mapping[str, Any]]:
    pods: list[Mapping[str, Any]] = []
    token = ""
    while True:
        context.progress(30 if not pods else 60, f"reading pods ({len(pods)} so far)")
        query = f"limit={PAGE}" + (f"&continue={token}" if token else "")
        answer = await clusters.kubernetes(place.cluster, username, f"/api/v1/namespaces/{place.namespace}/pods", query)
        pods += answer.get("items", [])
        token = answer.get("metadata", {}).get("continue", "")
        if not token:
            return pods
