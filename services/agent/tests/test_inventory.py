"""The inventory counts what the scheduler counts, as the caller."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest

from kubegems.agent.v1 import inventory_service_pb2 as wire
from libs import faults
from libs.clock import HeldClock
from libs.kube import KubeClient, Principal
from libs.kube.resources import NODES
from services.agent.inventory_api import Inventory, requests_of


def container(cpu: str, **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [container("100m"), container("0.2")]}, Fraction(3, 10)),
        ({"containers": [container("1")], "initContainers": [container("2")]}, Fraction(2)),
        ({"containers": [container("1")], "initContainers": [container("1", restartPolicy="Always")]}, Fraction(2)),
        ({"containers": [container("1")], "initContainers": [container("1", restartPolicy="Always"), container("3")]}, Fraction(4)),
        ({"containers": [container("1")], "initContainers": [container("3"), container("1", restartPolicy="Always")]}, Fraction(3)),
        ({"containers": [container("1")], "overhead": {"cpu": "250m"}}, Fraction(5, 4)),
    ],
)
def test_a_pods_requests(spec: dict[str, Any], cpu: Fraction) -> None:
    """Containers and sidecars, or the greatest need while starting, and the overhead."""
    assert requests_of({"spec": spec}) == {"requests.cpu": cpu, "pods": 1}


@pytest.mark.cluster
async def test_a_real_cluster_is_counted_as_the_caller(kube: KubeClient) -> None:
    """Nodes, capacity and version come as `gems:service:inventory`; a user without rights is refused."""
    user = [Principal("gems:service:inventory")]
    inventory = Inventory(kube, principal_of=lambda _: user[0], clock=HeldClock(datetime(2026, 1, 1, tzinfo=UTC)))
    capacity = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    await kube.create(NODES, {"metadata": {"name": "inventory-test"}})
    status = {"capacity": capacity, "allocatable": capacity}
    await kube.patch_status(NODES, "inventory-test", {"status": status})
    try:
        found = (await inventory.GetInventory(wire.GetInventoryRequest(), None)).inventory  # type: ignore[arg-type] # it asks for no call
        assert found.kubernetes_version.startswith("v1.")
        assert found.nodes >= 1
        assert found.capacity["cpu"]
        assert found.capacity["memory"].endswith("i")
        user[0] = Principal("gems:user:nobody")
        with pytest.raises(faults.PermissionDenied):
            await inventory.GetInventory(wire.GetInventoryRequest(), None)  # type: ignore[arg-type] # as above
    finally:
        await kube.delete(NODES, "inventory-test")
