"""What msgbus hears: each cluster's changes, jobs that moved, links that came and went."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError
from prometheus_client import Counter

from kubegems.agent.v1.events_pb2 import InterestHint, ObservedChange
from kubegems.fleet.v1.events_pb2 import ClusterLinkChanged
from kubegems.jobs.v1.events_pb2 import JobMoved
from libs import log
from libs.bus import Bus, Received, streams, subjects
from libs.faults import Fault
from libs.log import trace
from libs.run import Life
from services.msgbus.hub import Hub

LOOK_SECONDS = 2.0  # between two looks for clusters that joined or left
RELIST_SECONDS = 5.0  # between two requests to one agent to list afresh
_log = log.get("services.msgbus")
_HEARD = Counter("kubegems_msgbus_heard", "Messages heard from the bus.", ["lane"])
_GAPS = Counter("kubegems_msgbus_gaps", "Times that changes of a cluster were missing.")


class Consumers:
    """Follows the streams for as long as the service lives."""

    def __init__(self, bus: Bus, hub: Hub, clusters: Callable[[], Awaitable[dict[str, str]]], life: Life) -> None:
        self._bus = bus
        self._hub = hub
        self._clusters = clusters
        self._life = life
        self._following: dict[str, asyncio.Task[None]] = {}
        self._relisted: dict[str, float] = {}

    def start(self) -> None:
        """Begins to listen."""
        self._life.spawn("follow clusters", self._follow_clusters())
        self._life.spawn("follow jobs", self._follow_jobs())
        self._life.spawn("follow platform", self._follow_platform())

    async def _follow_clusters(self) -> None:
        while True:
            try:
                await self._look()
            except Fault as fault:
                _log.warning("clusters.unknown", error=str(fault))
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter

    async def _look(self) -> None:
        self._hub.clusters = await self._clusters()
        known = set(await self._bus.streams(streams.CLUSTER_PREFIX))
        for uid in self._hub.clusters:
            if uid not in self._following and streams.cluster(uid).name in known:
                self._following[uid] = self._life.spawn(f"follow {uid}", self._follow_cluster(uid), may_end=True)
        for uid in set(self._following) - set(self._hub.clusters):
            self._following.pop(uid).cancel()
            self._hub.view.forget(uid)

    async def _follow_cluster(self, uid: str) -> None:
        """Takes a cluster's changes from as far back as its stream reaches; a hostile one can only spoil its own view."""
        async for received in self._bus.follow(streams.cluster(uid).name, after=0):
            if received.gap:
                self._hub.resync(uid, "GAP")
                await self._relist(uid)
                continue
            _HEARD.labels("cluster").inc()
            try:
                change = received.parse(ObservedChange)
            except (ValueError, DecodeError) as error:
                _log.warning("change.rejected", cluster_uid=uid, error=str(error))
                continue
            if self._hub.take(uid, change):
                await self._relist(uid)

    async def _relist(self, uid: str) -> None:
        """Asks an agent to list afresh, now and then; it lists by itself too, so a lost hint costs time only."""
        _GAPS.inc()
        now = asyncio.get_running_loop().time()
        if now - self._relisted.get(uid, -RELIST_SECONDS) < RELIST_SECONDS:
            return
        self._relisted[uid] = now
        try:
            await self._bus.hint(subjects.interest(uid), InterestHint(relist=True))
        except Fault as fault:
            _log.warning("relist.not_asked", cluster_uid=uid, error=str(fault))

    async def _follow_jobs(self) -> None:
        async for received in self._bus.follow(streams.NOTICES.name, subjects=(subjects.notice("jobs"),)):
            self._in_trace("jobs", received, self._job)

    async def _follow_platform(self) -> None:
        async for received in self._bus.follow(streams.PLATFORM.name):
            self._in_trace("platform", received, self._fact)

    def _in_trace(self, lane: str, received: Received, handle: Callable[[Received], None]) -> None:
        _HEARD.labels(lane).inc()
        if received.gap:
            return
        with trace.span(f"{received.subject} receive", parent=received.traceparent, kind=trace.SpanKind.CONSUMER):
            try:
                handle(received)
            except (ValueError, DecodeError) as error:
                _log.warning("message.rejected", subject=received.subject, error=str(error))

    def _job(self, received: Received) -> None:
        self._hub.job_moved(received.parse(JobMoved))

    def _fact(self, received: Received) -> None:
        """Facts of the platform; links matter here, rights arrive as grants."""
        if received.subject != subjects.platform("fleet", "link-changed"):
            return
        link = received.parse(ClusterLinkChanged)
        self._hub.clusters[link.uid] = link.cluster
        if not link.online:
            self._hub.resync(link.uid, "CLUSTER_OFFLINE")
