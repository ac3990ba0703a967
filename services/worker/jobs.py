"""The kinds of job that the worker knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from google.protobuf import json_format

from kubegems.fleet.v1 import cluster_pb2
from libs.jobs.domain import GiveUp, Job, Kind, Progress
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


def kinds(clusters: Clusters, places: Places) -> dict[str, Kind]:
    """All kinds by name."""

    async def inventory(job: Job, progress: Progress) -> Mapping[str, Any]:
        await progress(10, "counting nodes and pods")
        counted = await clusters.count_inventory(job.target)
        return json_format.MessageToDict(counted)

    async def report(job: Job, progress: Progress) -> Mapping[str, Any]:
        place = await places(job.target)
        if place is None:
            raise GiveUp(f"{job.target} is not there any more")
        username = job.creator.removeprefix("users/")
        base = f"/api/v1/namespaces/{place.namespace}"
        await progress(10, "reading the quota")
        quotas = await clusters.kubernetes(place.cluster, username, f"{base}/resourcequotas")
        pods: list[Mapping[str, Any]] = []
        token = ""
        while True:
            await progress(30 if not pods else 60, f"reading pods ({len(pods)} so far)")
            query = f"limit={PAGE}" + (f"&continue={token}" if token else "")
            answer = await clusters.kubernetes(place.cluster, username, f"{base}/pods", query)
            pods += answer.get("items", [])
            token = answer.get("metadata", {}).get("continue", "")
            if not token:
                break
        await progress(90, "adding up")
        return usage_report(place, quotas.get("items", []), pods)

    return {
        INVENTORY: Kind(INVENTORY, targets="clusters", depth=2, permission="jobs.jobs.create", handler=inventory),
        USAGE_REPORT: Kind(USAGE_REPORT, targets="tenants", depth=6, permission="jobs.jobs.create", handler=report),
    }
