"""Observer: the agent's copy of the cluster, one reflector per kind, and who hears of its changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from libs.kube import Change, KubeClient, Reflector, Resource
from services.agent.observed.trim import trim

Listener = Callable[[Change], Awaitable[None]]


class Observer:
    """Reflectors for a set of kinds, under the agent's own account (`gems:observer`: no secrets).

    Attributes:
        reflectors: by kind.
    """

    def __init__(self, client: KubeClient, kinds: Iterable[Resource], *, registry: CollectorRegistry = REGISTRY) -> None:
        self._listeners: dict[Resource, list[Listener]] = {}
        self.reflectors = {kind: Reflector(client, kind, self._teller(kind), trim=trim(kind)) for kind in kinds}
        objects = Gauge("kubegems_agent_observed_objects", "Objects in the agent's copy.", ["resource"], registry=registry)
        watching = Gauge("kubegems_agent_observed_watching", "1 while the kind is watched.", ["resource"], registry=registry)
        for kind, reflector in self.reflectors.items():
            objects.labels(kind.key).set_function(partial(len, reflector.store))
            watching.labels(kind.key).set_function(partial(_watching, reflector))

    def listen(self, kind: Resource, listener: Listener) -> None:
        """Calls `listener` for each change of a kind, in order; it must not wait long. Before `run` only."""
        self._listeners.setdefault(kind, []).append(listener)

    def _teller(self, kind: Resource) -> Listener:
        listeners = self._listeners.setdefault(kind, [])

        async def tell(change: Change) -> None:
            for listener in listeners:
                await listener(change)

        return tell


def _watching(reflector: Reflector) -> float:
    return float(reflector.synced.is_set() and reflector.problem is None)
