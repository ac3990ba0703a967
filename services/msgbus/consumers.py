"""What msgbus hears: each cluster's changes, jobs that moved, links that came and went."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge, Histogram

from kubegems.agent.v1.events_pb2 import InterestHint, ObservedChange, Watermark
from kubegems.fleet.v1.cluster_access_service_pb2 import ListLinksResponse
from kubegems.fleet.v1.events_pb2 import ClusterLinkChanged
from kubegems.jobs.v1.events_pb2 import JobMoved
from kubegems.messages.v1.events_pb2 import NoticeStored
from libs import log
from libs.bus import Bus, Received, streams, subjects
from libs.faults import Fault
from libs.log import trace
from libs.run import Life
from services.msgbus.hub import Hub
from services.msgbus.pace import Pace
from services.msgbus.wash import started, washed

LOOK_SECONDS = 2.0  # between two looks for clusters that joined or left
RELIST_SECONDS = 5.0  # between two requests to one agent to list afresh
MESSAGES_PER_SECOND = 2000.0  # that are read of one cluster
BYTES_PER_SECOND = 4.0 * 1024 * 1024
FRESH_SECONDS = 12.0  # a watermark of a live agent is younger
_CATCH_UP_POLL = 0.05
_log = log.get("services.msgbus")
Link = ListLinksResponse.Link
_HEARD = Counter("kubegems_msgbus_heard", "Messages heard from the bus.", ["lane"])
_GAPS = Counter("kubegems_msgbus_gaps", "Times that changes of a cluster were missing.")
_STALE = Gauge("kubegems_msgbus_stale_clusters", "Clusters of which something is missing until their agents have listed afresh.")
_REFUSED = Counter("kubegems_msgbus_refused", "Changes that could not be used, by reason.", ["reason"])
_LAG = Histogram(
    "kubegems_msgbus_lag_seconds", "From an agent's sight of a change to its being in the queues.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60),
)  # fmt: skip
_SILENT = Gauge("kubegems_msgbus_cluster_silence_seconds", "Since an online cluster was last heard of.", ["cluster"])
_PACED = Gauge("kubegems_msgbus_paced_seconds", "How long a cluster was read later than it came, since the start.", ["cluster"])


class Consumers:
    """Follows the streams for as long as the service lives."""

    def __init__(self, bus: Bus, hub: Hub, clusters: Callable[[], Awaitable[list[Link]]], life: Life) -> None:
        self._bus = bus
        self._hub = hub
        self._clusters = clusters
        self._life = life
        self._following: dict[str, asyncio.Task[None]] = {}
        self._relisted: dict[str, float] = {}
        self._online: set[str] = set()
        self._looked = False

    def start(self) -> None:
        """Begins to listen."""
        self._life.spawn("follow clusters", self._follow_clusters())
        self._life.spawn("follow notices", self._follow_notices())
        self._life.spawn("follow platform", self._follow_platform())

    async def _follow_clusters(self) -> None:
        while True:
            try:
                await self._look()
            except Fault as fault:
                _log.warning("clusters.unknown", error=str(fault))
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter

    async def _look(self) -> None:
        links = await self._clusters()
        self._hub.clusters = {link.uid: link.cluster for link in links}
        self._online = {link.uid for link in links if link.online}
        known = set(await self._bus.streams(streams.CLUSTER_PREFIX))
        for uid in self._hub.clusters:
            if uid not in self._following and streams.cluster(uid).name in known:
                self._following[uid] = self._life.spawn(f"follow {uid}", self._follow_cluster(uid), may_end=True)
        for uid in set(self._following) - set(self._hub.clusters):
            self._following.pop(uid).cancel()
            self._hub.view.forget(uid)
            _SILENT.remove(uid)
            _PACED.remove(uid)
        self._looked = True
        await self._heal()

    async def _heal(self) -> None:
        """Asks again and again for what is missing: a hint may be lost, as NATS itself was just away."""
        stale = [uid for uid in self._hub.clusters if self._hub.view.stale(uid)]
        _STALE.set(len(stale))
        for uid in self._following:
            _SILENT.labels(uid).set(self._hub.view.age(uid) or 0.0)
        for uid in stale:
            await self._relist(uid)

    async def _follow_cluster(self, uid: str) -> None:
        """Takes a cluster's changes from as far back as its stream reaches; a hostile one can only spoil its own view."""
        pace = Pace(MESSAGES_PER_SECOND, BYTES_PER_SECOND)
        paced = _PACED.labels(uid)
        async for received in self._bus.follow(streams.cluster(uid).name, after=0):
            if received.gap:
                continue  # what is missing shows by its counters, or by the next watermark
            _HEARD.labels("cluster").inc()
            await pace.take(len(received.data))
            paced.set(pace.waited)
            try:
                gap = self._watermark(uid, received) if received.subject == subjects.watermark(uid) else self._change(uid, received)
            except (ValueError, DecodeError) as error:
                _REFUSED.labels("MALFORMED").inc()
                _log.warning("change.rejected", cluster_uid=uid, error=str(error)[:200])
                continue
            if gap:
                _GAPS.inc()
                await self._relist(uid)

    def _change(self, uid: str, received: Received) -> bool:
        change = received.parse(ObservedChange)
        started(change)
        shown = washed(change)
        if not shown:
            _REFUSED.labels("IMPOSSIBLE_NAME").inc()
        _LAG.observe(max(0.0, time.time() - change.observe_time.ToNanoseconds() / 1e9))
        return self._hub.take(uid, change, shown=shown)

    def _watermark(self, uid: str, received: Received) -> bool:
        mark = received.parse(Watermark)
        started(mark)
        return self._hub.mark(uid, mark, fresh=time.time() - mark.time.ToNanoseconds() / 1e9 < FRESH_SECONDS)

    async def caught_up(self, seconds: float) -> None:
        """Waits until the streams of all online clusters are read to their end, for some seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._looked or any(not self._hub.view.marked(uid) for uid in self._online):  # noqa: ASYNC110 -- a poll at the start
                    await asyncio.sleep(_CATCH_UP_POLL)

    async def _relist(self, uid: str) -> None:
        """Asks an agent to list afresh, now and then; it lists by itself too, so a lost hint costs time only."""
        now = asyncio.get_running_loop().time()
        if now - self._relisted.get(uid, -RELIST_SECONDS) < RELIST_SECONDS:
            return
        self._relisted[uid] = now
        try:
            await self._bus.hint(subjects.interest(uid), InterestHint(relist=True))
        except Fault as fault:
            _log.warning("relist.not_asked", cluster_uid=uid, error=str(fault))

    async def _follow_notices(self) -> None:
        both = (subjects.notice("jobs"), subjects.notice("stored"))
        async for received in self._bus.follow(streams.NOTICES.name, subjects=both):
            self._in_trace("notices", received, self._notice)

    async def _follow_platform(self) -> None:
        async for received in self._bus.follow(streams.PLATFORM.name):
            self._in_trace("platform", received, self._fact)

    def _in_trace(self, lane: str, received: Received, handle: Callable[[Received], None]) -> None:
        if received.gap:
            if lane == "notices":
                self._hub.news_lost()
            return
        _HEARD.labels(lane).inc()
        with trace.span(f"{received.subject} receive", parent=received.traceparent, kind=trace.SpanKind.CONSUMER):
            try:
                handle(received)
            except (ValueError, DecodeError) as error:
                _log.warning("message.rejected", subject=received.subject, error=str(error))

    def _notice(self, received: Received) -> None:
        if received.subject == subjects.notice("jobs"):
            first = received.parse(JobMoved)
            for moved in (first, *first.also):
                self._hub.job_moved(moved)
        else:
            self._hub.notice(received.parse(NoticeStored))

    def _fact(self, received: Received) -> None:
        """Facts of the platform; links matter here, rights arrive as grants."""
        if received.subject != subjects.platform("fleet", "link-changed"):
            return
        link = received.parse(ClusterLinkChanged)
        self._hub.clusters[link.uid] = link.cluster
        if not link.online:
            self._hub.resync(link.uid, "CLUSTER_OFFLINE")
