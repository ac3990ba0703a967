"""An agent's observation of a cluster that a test makes up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry

from libs.bus import Bus, subjects
from libs.clock import SystemClock, new_id
from libs.kube import Change, Resource, Store
from libs.kube.resources import PODS
from libs.kube.store import LISTED
from services.agent.app import _on_interest
from services.agent.observed.observation import Observation
from services.agent.observed.publisher import Publisher, Rate

UID = "0197a1b2-0000-7000-8000-000000000001"
Object = dict[str, Any]


class _Reflector:
    """A copy that a test changes."""

    def __init__(self) -> None:
        self.store = Store()
        self.problem = None

    async def run(self) -> None:
        """Does nothing, for ever."""
        await asyncio.Event().wait()


class _Observer:
    """Keeps reflectors and listeners, as the agent's."""

    def __init__(self) -> None:
        self.reflectors: dict[Resource, _Reflector] = {}
        self.listeners: dict[Resource, list[Any]] = {}

    def add(self, kind: Resource) -> _Reflector:
        """A fresh copy."""
        self.reflectors[kind] = _Reflector()
        return self.reflectors[kind]

    def remove(self, kind: Resource) -> None:
        """Forgets it."""
        del self.reflectors[kind]
        self.listeners.pop(kind, None)

    def listen(self, kind: Resource, listener: Any) -> None:
        """Who hears."""
        self.listeners.setdefault(kind, []).append(listener)


class _Interest:
    """What pokes go to."""

    def poke(self, _traceparent: str = "") -> None:
        """Nothing to fetch."""


class Cluster:
    """An agent's observation of a cluster that a test makes up: real feeds, publisher, watermarks and answers to hints.

    Attributes:
        observing: whether an agent runs that has listed all it was told to observe.
    """

    def __init__(self, bus: Bus, spawn: Callable[[str, Any], asyncio.Task[None]]) -> None:
        self.observer = _Observer()
        self.objects: dict[Resource, dict[tuple[str, str], Object]] = {}
        self.version = 0
        self.observing = False
        self._bus, self._spawn = bus, spawn
        self._tasks: list[asyncio.Task[None]] = []
        self.start()

    def start(self, *kinds: Resource) -> None:
        """A new agent process: a new epoch, everything listed afresh."""

        def spawn(name: str, work: Any) -> asyncio.Task[None]:
            self._tasks.append(self._spawn(name, work))
            return self._tasks[-1]

        publisher = Publisher(self._bus, cluster_uid=UID, rate=Rate(5000), clock=SystemClock(), registry=CollectorRegistry(), max_delay=0.5)
        self.observation = Observation(self.observer, publisher, spawn=spawn, epoch=new_id().hex, limit=2000)  # type: ignore[arg-type] # doubles
        spawn("watermarks", publisher.watermarks(self.observation.watermark, 0.5))
        spawn("hints", _on_interest(self._bus.subscribe(subjects.interest(UID)), _Interest(), self.observation))  # type: ignore[arg-type] # doubles

    async def kill(self) -> None:
        """The agent dies; the cluster goes on."""
        self.observing = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.observer = _Observer()

    async def observe(self, kind: Resource) -> None:
        """Lists and follows a kind."""
        self.observation.start(kind)
        for found in self.objects.get(kind, {}).values():
            await self._tell(kind, self.observer.reflectors[kind].store.put(found))
        await self._tell(kind, LISTED)
        self.observing = True

    def stop(self, kind: Resource) -> None:
        """Nobody watches it any more."""
        self.observation.stop(kind)

    async def put(self, namespace: str, name: str, kind: Resource = PODS, **labels: str) -> None:
        """An object is made or changed."""
        self.version += 1
        objects = self.objects.setdefault(kind, {})
        uid = objects[namespace, name]["metadata"]["uid"] if (namespace, name) in objects else str(uuid4())
        metadata = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(self.version), "labels": labels}
        objects[namespace, name] = {"metadata": metadata, "columns": {"phase": f"v{self.version}"}}
        if kind in self.observer.reflectors:
            await self._tell(kind, self.observer.reflectors[kind].store.put(objects[namespace, name]))

    async def delete(self, namespace: str, name: str, kind: Resource = PODS) -> None:
        """An object goes."""
        self.version += 1
        self.objects.get(kind, {}).pop((namespace, name), None)
        if kind in self.observer.reflectors:
            await self._tell(kind, self.observer.reflectors[kind].store.remove((namespace, name)))

    async def _tell(self, kind: Resource, change: Change | None) -> None:
        if change is not None:
            for listener in self.observer.listeners.get(kind, ()):
                await listener(change)

    def listed(self, kind: Resource = PODS, *namespaces: str) -> dict[tuple[str, str], str]:
        """What the cluster's own list says: resource version by (namespace, name)."""
        found = self.objects.get(kind, {})
        return {key: o["metadata"]["resourceVersion"] for key, o in found.items() if not namespaces or key[0] in namespaces}

    async def churn(self, rng: random.Random, changes: int, namespaces: tuple[str, ...] = ("acme", "globex"), every: float = 0.0) -> None:
        """Random changes of a few objects."""
        for _ in range(changes):
            namespace, name = rng.choice(namespaces), f"p{rng.randrange(30)}"
            if rng.random() < 0.3:
                await self.delete(namespace, name)
            else:
                await self.put(namespace, name)
            await asyncio.sleep(every)
