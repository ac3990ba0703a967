"""InventoryService: what a cluster consists of, counted live as the user of the call's grant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from kubegems.agent.v1 import inventory_service_pb2 as wire
from kubegems.fleet.v1 import cluster_pb2
from libs.clock import Clock
from libs.kube import KubeClient, Principal, quantity
from libs.kube.resources import NODES, PODS
from libs.rpc.call import Call

Object = Mapping[str, Any]
_RUNNING_OR_WAITING = "status.phase!=Succeeded,status.phase!=Failed"
Requests = dict[str, Fraction]


class Inventory:
    """Counts page by page, so that a big cluster costs no more memory than a small one.

    Args:
        client: of the cluster.
        principal_of: as whom a call must act; raises when the call came under no grant.
        clock: for the time of counting.
    """

    def __init__(self, client: KubeClient, *, principal_of: Callable[[Call], Principal], clock: Clock) -> None:
        self._client = client
        self._principal_of = principal_of
        self._clock = clock

    async def GetInventory(self, _request: wire.GetInventoryRequest, call: Call) -> wire.GetInventoryResponse:
        """Version, nodes, their capacity and allocatable, and the requests of pods that run or wait."""
        user = self._principal_of(call)
        found = cluster_pb2.Inventory()
        found.count_time.FromDatetime(self._clock.now())
        found.kubernetes_version = (await self._client.get_path("/version", impersonate=user)).get("gitVersion", "")
        capacity, allocatable = _Sum(), _Sum()
        async for node in self._client.list(NODES, impersonate=user):
            status = node.get("status") or {}
            found.nodes += 1
            found.ready_nodes += _ready(status)
            capacity.add(status.get("capacity") or {})
            allocatable.add(status.get("allocatable") or {})
        allocated = _Sum()
        async for pod in self._client.list(PODS, field_selector=_RUNNING_OR_WAITING, impersonate=user):
            allocated.add_values(requests_of(pod))
        found.capacity.update(capacity.texts())
        found.allocatable.update(allocatable.texts())
        found.allocated.update(allocated.texts())
        return wire.GetInventoryResponse(inventory=found)


class _Sum:
    """Sums resource lists; memory stays in binary units."""

    def __init__(self) -> None:
        self._values: Requests = {}
        self._binary: set[str] = set()

    def add(self, resources: Mapping[str, str]) -> None:
        """Adds quantities."""
        self._binary |= {name for name, text in resources.items() if quantity.is_binary(text)}
        self.add_values({name: quantity.parse(text) for name, text in resources.items()})

    def add_values(self, values: Requests) -> None:
        """Adds exact values."""
        for name, value in values.items():
            self._values[name] = self._values.get(name, Fraction(0)) + value

    def texts(self) -> dict[str, str]:
        """The sums, as quantities."""
        binary = self._binary | {name for name in self._values if name.endswith(("memory", "storage"))}
        return {name: quantity.format(value, binary=name in binary) for name, value in sorted(self._values.items())}


def requests_of(pod: Object) -> Requests:
    """What the scheduler sets aside for a pod, as `requests.{resource}`, and `pods`.

    The containers and sidecars together, or the greatest need while starting (an init container beside the sidecars
    started before it), whichever is more, and the overhead.
    """
    spec = pod.get("spec") or {}
    running = _summed(_requests(container) for container in spec.get("containers") or [])
    sidecars: Requests = {}
    starting: Requests = {}
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            sidecars = _summed((sidecars, _requests(container)))
            starting = _greatest(starting, sidecars)
        else:
            starting = _greatest(starting, _summed((sidecars, _requests(container))))
    overhead = {name: quantity.parse(text) for name, text in (spec.get("overhead") or {}).items()}
    needed = _summed((_greatest(_summed((running, sidecars)), starting), overhead))
    return {f"requests.{name}": value for name, value in needed.items()} | {"pods": Fraction(1)}


def _requests(container: Object) -> Requests:
    requests = (container.get("resources") or {}).get("requests") or {}
    return {name: quantity.parse(text) for name, text in requests.items()}


def _summed(parts: Iterable[Requests]) -> Requests:
    total: Requests = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, Fraction(0)) + value
    return total


def _greatest(left: Requests, right: Requests) -> Requests:
    return {name: max(left.get(name, Fraction(0)), right.get(name, Fraction(0))) for name in {**left, **right}}


def _ready(status: Object) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or [])
