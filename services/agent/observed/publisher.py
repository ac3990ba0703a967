"""Publisher: sends feeds to the bus, in order, at a bounded rate, through every outage."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import Message
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from kubegems.agent.v1 import events_pb2
from libs import log
from libs.bus import subjects
from libs.clock import Clock
from libs.faults import Fault
from services.agent.observed.feed import Feed, stamped

_log = log.get(__name__)
WATERMARK_SECONDS = 3.0
_WINDOW = 64  # messages under way at once; the broker keeps their order, and no object is twice among them
_FIRST_DELAY = 0.2
_BYTES = 1024.0 * 1024
_MAX_DELAY = 10.0


class Bus(Protocol):
    """What is needed of libs.bus."""

    async def publish(self, subject: str, message: Message, *, id: str) -> Any:  # noqa: A002 -- NATS's word
        """Stores a message; raises Faults, Unavailable while the broker is away."""
        ...


class Rate:
    """So many per second, with a burst of one second's worth."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._last = asyncio.get_running_loop().time()

    async def take(self, count: int) -> None:
        """Waits until `count` may go; a large count borrows from the seconds to come."""
        now = asyncio.get_running_loop().time()
        self._left = min(self._per_second, self._left + (now - self._last) * self._per_second)
        self._last = now
        self._left -= count
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_second)


class Publisher:
    """Publishes a cluster's feeds on `gems.cluster.{uid}.…`."""

    def __init__(
        self,
        bus: Bus,
        *,
        cluster_uid: str,
        rate: Rate,
        clock: Clock,
        registry: CollectorRegistry = REGISTRY,
        max_delay: float = _MAX_DELAY,
        size: Rate | None = None,
    ) -> None:
        self._bus = bus
        self._uid = cluster_uid
        self._rate = rate
        self._size = size or Rate(_BYTES)
        self._clock = clock
        self._max_delay = max_delay
        self._published = Counter("kubegems_agent_observed_published", "Observed changes published.", ["resource"], registry=registry)
        self._relists = Gauge("kubegems_agent_observed_relists", "Lists forced by a bus that was away.", ["resource"], registry=registry)
        self._waiting = Gauge("kubegems_agent_observed_waiting", "Objects whose change waits.", ["resource"], registry=registry)

    async def run(self, feed: Feed) -> None:
        """Publishes one feed, for ever."""
        published = self._published.labels(feed.resource.key)
        relists, waiting = self._relists.labels(feed.resource.key), self._waiting.labels(feed.resource.key)
        while True:
            await feed.waiting.wait()
            messages = stamped(feed.take_out(_WINDOW), self._clock.now())
            relists.set(feed.relists)
            waiting.set(len(feed))
            await self._rate.take(len(messages))
            await self._size.take(sum(message.ByteSize() for message in messages))
            await self._send(messages)
            feed.done()
            published.inc(len(messages))

    async def _send(self, window: list[events_pb2.ObservedChange]) -> None:
        """Sends a window whole. After a failure all from the first failed message on goes again: a duplicate is harmless, a gap is not."""
        failures = 0
        while window:
            results = await asyncio.gather(*(self._one(message) for message in window), return_exceptions=True)
            failed = next((index for index, result in enumerate(results) if result is not None), None)
            if failed is None:
                return
            error = results[failed]
            if not isinstance(error, Fault):
                assert error is not None
                raise error
            window = window[failed:]
            failures += 1
            if failures == 1:
                _log.warning("observed.not_published", reason=error.reason, problem=error.message)
            ceiling = min(self._max_delay, _FIRST_DELAY * 2 ** min(failures, 16))
            await asyncio.sleep(random.uniform(ceiling / 2, ceiling))  # noqa: S311 -- jitter

    async def watermarks(self, watermark: Callable[[], events_pb2.Watermark], every: float = WATERMARK_SECONDS) -> None:
        """Tells every few seconds how far each kind is published, for ever: what a broker forgot at the very end shows by that alone."""
        while True:
            await asyncio.sleep(every * random.uniform(0.9, 1.1))  # noqa: S311 -- jitter
            message = watermark()
            message.time.FromDatetime(self._clock.now())
            with contextlib.suppress(Fault):  # the next one says as much
                await self._bus.publish(subjects.watermark(self._uid), message, id="")

    async def _one(self, message: events_pb2.ObservedChange) -> None:
        subject = subjects.observed(self._uid, message.group, message.version, message.resource, message.namespace)
        identity = f"{message.epoch}.{message.group}.{message.version}.{message.resource}.{message.counter}"
        await self._bus.publish(subject, message, id=identity)
