"""Observation: which kinds are observed and published just now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kubegems.agent.v1 import events_pb2
from libs.kube import Reflector, Resource
from services.agent.observed.feed import Feed
from services.agent.observed.observer import Observer
from services.agent.observed.publisher import Publisher

Spawn = Callable[[str, Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Observation:
    """Starts and stops kinds; each has a reflector and a publisher task.

    Args:
        observer: makes the reflectors.
        publisher: sends their feeds.
        spawn: owns the tasks.
        epoch: the agent's start.
        limit: changes per kind that may wait for the bus.
    """

    def __init__(self, observer: Observer, publisher: Publisher, *, spawn: Spawn, epoch: str, limit: int) -> None:
        self._observer = observer
        self.publisher = publisher
        self._spawn = spawn
        self._epoch = epoch
        self._limit = limit
        self._feeds: dict[Resource, Feed] = {}
        self._tasks: dict[Resource, list[asyncio.Task[None]]] = {}

    @property
    def kinds(self) -> set[Resource]:
        """What is observed now."""
        return set(self._tasks)

    def start(self, kind: Resource) -> Reflector:
        """Observes a kind. One that was stopped before begins with a fresh copy; its numbers go on."""
        reflector = self._observer.add(kind)
        feed = self._feeds.get(kind)
        if feed is None:
            feed = self._feeds[kind] = Feed(kind, reflector.store, epoch=self._epoch, limit=self._limit)
        else:
            feed.restart(reflector.store)
        self._observer.listen(kind, feed.take)
        self._tasks[kind] = [
            self._spawn(f"observe {kind.key}", reflector.run()),
            self._spawn(f"publish {kind.key}", self.publisher.run(feed)),
        ]
        return reflector

    def stop(self, kind: Resource) -> None:
        """Ends it and forgets its copy."""
        for task in self._tasks.pop(kind, ()):
            task.cancel()
        self._observer.remove(kind)

    def watermark(self) -> events_pb2.Watermark:
        """How far each kind is published, so that a reader knows when it has missed the last of it."""
        mark = events_pb2.Watermark(epoch=self._epoch)
        for kind in self._tasks:
            problem = self._observer.reflectors[kind].problem
            mark.marks.add(
                group=kind.group, resource=kind.plural, counter=self._feeds[kind].published, problem=problem.reason[:64] if problem else ""
            )
        return mark

    def relist(self) -> None:
        """Lists every kind afresh: some reader has missed something."""
        for kind in self._tasks:
            self._feeds[kind].relist()
