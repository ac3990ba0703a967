"""Reflector: keeps a Store equal to a kind in the cluster, for ever."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from libs import log
from libs.faults import Fault, Unavailable
from libs.kube.client import KubeClient
from libs.kube.errors import Expired
from libs.kube.resources import Resource
from libs.kube.store import LISTED, Change, Index, Object, Store, key_of
from libs.kube.watch import OPEN, SILENCE, Event, watch

_log = log.get(__name__)
_FIRST_DELAY = 0.2
_MAX_DELAY = 30.0
_PAGED_TRIES = 3
_SHORTEST_WATCH = 1.0  # seconds; a watch that ends sooner is an error, not a rotation
_WATCH_SECONDS = (240, 480)  # a random life spreads the reconnects of many agents


def untrimmed(found: Object) -> Object:
    """The object without its field ownership records, which nobody reads and which are half its size."""
    found["metadata"].pop("managedFields", None)
    return found


class Reflector:
    """List and watch of one kind.

    `on_change` is awaited for every change, in order per object, and for LISTED after each whole list, so a slow
    receiver slows the watch instead of filling memory. `trim` keeps what the caller needs, metadata's name, namespace, uid
    and resourceVersion in any case. A relist tells only differences: what is new, what changed,
    and a DELETED for what is gone. A kind that is missing or forbidden is told by `problem` and tried again; the store
    keeps what it had, since "cannot see" is not "gone".

    Attributes:
        store: the copy.
        synced: set once a first list is complete.
        problem: why it cannot watch now; None when it does.
        lists: lists made so far.
    """

    def __init__(
        self, client: KubeClient, resource: Resource, on_change: Callable[[Change], Awaitable[None]] | None = None, *,
        namespace: str | None = None, label_selector: str = "", field_selector: str = "",
        trim: Callable[[Object], Object] = untrimmed, indexes: Mapping[str, Index] | None = None,
        silence: float = SILENCE, page_size: int = 500, max_delay: float = _MAX_DELAY,
    ) -> None:  # fmt: skip
        self.resource = resource
        self.store = Store(indexes)
        self.synced = asyncio.Event()
        self.problem: Fault | None = None
        self.lists = 0
        self._client = client
        self._on_change = on_change
        self._namespace = namespace
        self._selectors: dict[str, Any] = {"label_selector": label_selector, "field_selector": field_selector}
        self._trim = trim
        self._silence = silence
        self._page_size = page_size
        self._max_delay = max_delay
        self._version = ""
        self._failures = 0
        self._began = 0.0

    async def run(self) -> None:
        """Lists and watches until cancelled; never ends by itself."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                if time.monotonic() - self._began < _SHORTEST_WATCH:
                    raise Unavailable("the API server ended a watch at once")
                self._failures = 0
            except Expired:
                self._version = ""
                if self._failures:
                    await self._wait()
                self._failures += 1
            except Fault as fault:
                self._told(fault)
                await self._wait()

    async def _list(self) -> None:
        seen, more, version = set(), "", ""
        limit = self._page_size if self._failures < _PAGED_TRIES else 0  # pages that keep expiring are too slow: all at once
        while True:
            page = await self._client.page(self.resource, self._namespace, more=more, limit=limit, **self._selectors)
            for item in page.items:
                found = self._trim(item)
                seen.add(key_of(found))
                await self._tell(self.store.put(found))
            version, more = page.resource_version, page.more
            if not more:
                break
        for key in self.store.keys() - seen:
            await self._tell(self.store.remove(key))
        self._version = version
        self.lists += 1
        self.synced.set()
        await self._tell(LISTED)

    async def _watch(self) -> None:
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311 -- spreads load, guards nothing
        events = watch(
            self._client, self.resource, self._namespace, resource_version=self._version, seconds=seconds,
            silence=self._silence, **self._selectors,
        )  # fmt: skip
        self._began = time.monotonic()
        async with aclosing(events):
            async for event in events:
                if event.type == OPEN:
                    self.problem = None
                else:
                    self._failures = 0
                    await self._take(event)

    async def _take(self, event: Event) -> None:
        found = event.object
        version = str(found["metadata"]["resourceVersion"])
        if event.type == "DELETED":
            await self._tell(self.store.remove(key_of(found), self._trim(found)))
        elif event.type != "BOOKMARK":
            await self._tell(self.store.put(self._trim(found)))
        self._version = version

    async def _tell(self, change: Change | None) -> None:
        if change is not None and self._on_change is not None:
            await self._on_change(change)

    def _told(self, fault: Fault) -> None:
        if self.problem is None or self.problem.reason != fault.reason:
            _log.warning("reflector.interrupted", resource=self.resource.key, reason=fault.reason, problem=fault.message)
        self.problem = fault
        self._failures += 1

    async def _wait(self) -> None:
        ceiling = min(self._max_delay, _FIRST_DELAY * 2 ** min(self._failures, 16))
        await asyncio.sleep(random.uniform(ceiling / 2, ceiling))  # noqa: S311 -- jitter
