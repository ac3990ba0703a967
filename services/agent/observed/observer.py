"""Observer: the agent's copy of the cluster, one reflector per kind, and who hears of its changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from libs.kube import Change, KubeClient, Reflector, Resource
from services.agent.observed.trim import trim

Listener = Callable[[Change], Awaitable[None]]


class Observer:
    """Reflectors under the agent's own account (`gems:observer`: no secrets).

    Attributes:
        reflectors: by kind.
    """

    def __init__(self, client: KubeClient, kinds: Iterable[Resource] = (), *, registry: CollectorRegistry = REGISTRY) -> None:
        self.reflectors: dict[Resource, Reflector] = {}
        self._client = client
        self._listeners: dict[Resource, list[Listener]] = {}
        self._objects = Gauge("kubegems_agent_observed_objects", "Objects in the agent's copy.", ["resource"], registry=registry)
        self._watching = Gauge("kubegems_agent_observed_watching", "1 while the kind is watched.", ["resource"], registry=registry)
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Resource) -> Reflector:
        """A reflector of a kind, with an empty copy; its `run` is the caller's."""
        reflector = self.reflectors[kind] = Reflector(self._client, kind, self._teller(kind), trim=trim(kind))
        self._objects.labels(kind.key).set_function(partial(len, reflector.store))
        self._watching.labels(kind.key).set_function(partial(_watching, reflector))
        return reflector

    def remove(self, kind: Resource) -> None:
        """Forgets a kind, its copy and its listeners."""
        del self.reflectors[kind]
        self._listeners.pop(kind, None)
        self._objects.remove(kind.key)
        self._watching.remove(kind.key)

    def listen(self, kind: Resource, listener: Listener) -> None:
        """Calls `listener` for each change of a kind, in order; it must not wait long."""
        self._listeners.setdefault(kind, []).append(listener)

    def _teller(self, kind: Resource) -> Listener:
        listeners = self._listeners.setdefault(kind, [])

        async def tell(change: Change) -> None:
            for listener in listeners:
                await listener(change)

        return tell


def _watching(reflector: Reflector) -> float:
    return float(reflector.synced.is_set() and reflector.problem is None)
