"""Which gateway holds which cluster's tunnel, kept in NATS bucket TUNNELS and in the memory of every gateway.

Each tunnel of the hub has a number that rises; whoever sees that another gateway has a greater one for a cluster lets
its own go. Each gateway compares what it holds with what the bucket says until both agree, so lost, late and doubled
messages and a broker that forgot everything are healed alike. While NATS is away the last known map is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from kubegems.agent.v1.tunnel_pb2 import TunnelHolder
from libs import log
from libs.bus import Bus, Received, streams, subjects
from libs.clock import new_id
from libs.faults import Fault

_BEAT = 2.0  # seconds between signs of life
LAPSE = 7.0  # seconds after which a silent gateway is gone
_REPLAYED = 2  # own signs of life heard since the bucket was read from its start: the first may be of before
_RETRY = 0.5
_PUBLISH = 3.0
_AFRESH = 1800.0  # seconds after which everything is told again; the bucket forgets after two hours
_CLUSTERS, _GATEWAYS = subjects.tunnel("x")[:-1], subjects.gateway("x")[:-1]
_log = log.get("services.gateway.link")


class Own(Protocol):
    """The tunnels of this gateway."""

    def holdings(self) -> Mapping[str, TunnelHolder]:
        """Session, number and time of each tunnel, by cluster uid."""
        ...

    def superseded(self, uid: str, number: int) -> None:
        """Another gateway has a newer tunnel of a cluster."""
        ...


@dataclass(slots=True)
class _Gateway:
    """Another gateway, as last heard."""

    holder: TunnelHolder
    heard: float


class Presence:
    """Keeps the map.

    Args:
        bus: NATS.
        address: `host:port` where other gateways reach this one's tunnel listener.
        replica: id of this process.
    """

    def __init__(self, bus: Bus, address: str, *, replica: str = "") -> None:
        self.replica = replica or new_id().hex
        self._bus, self._address = bus, address
        self._own: Own | None = None
        self._map: dict[str, TunnelHolder] = {}
        self._gateways: dict[str, _Gateway] = {}
        self._dirty: set[str] = set()
        self._some = asyncio.Event()
        self._sequence = 0
        self._echoed = 0.0
        self._echoes = 0
        self._unheard: set[str] = set()
        self._draining = False
        self._left = False

    def of(self, own: Own) -> None:
        """Whose tunnels to tell of."""
        self._own = own

    # -- for callers

    def holder(self, uid: str) -> TunnelHolder | None:
        """The other gateway that holds a cluster's tunnel; None when none is known that lives."""
        found = self._map.get(uid)
        return found if found is not None and self.lives(found.replica) else None

    def lives(self, replica: str) -> bool:
        """Whether another gateway was heard of lately; while we do not hear ourselves either, whether it was before."""
        known = self._gateways.get(replica)
        return known is not None and self._echoed - known.heard < LAPSE

    @property
    def others(self) -> bool:
        """Whether another gateway lives that agents can go to."""
        return any(self.lives(replica) and not known.holder.draining for replica, known in self._gateways.items())

    def draining(self, replica: str) -> bool:
        """Whether another gateway said that it is about to stop."""
        known = self._gateways.get(replica)
        return known is not None and known.holder.draining

    def touch(self, uid: str) -> None:
        """A tunnel came or went here."""
        self._dirty.add(uid)
        self._some.set()

    async def drain(self) -> None:
        """Tells the others that this gateway is about to stop."""
        self._draining = True
        with contextlib.suppress(Fault):
            await self._beat_once()

    # -- life

    async def run(self) -> None:
        """Keeps the map until cancelled."""
        await self._ensured()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="tunnels follow")
            group.create_task(self._beat(), name="tunnels beat")
            group.create_task(self._tell(), name="tunnels tell")

    async def close(self) -> None:
        """Tells that nothing is held here any more; within a moment, after `run` was cancelled."""
        self._left = True
        mine = [uid for uid, found in self._map.items() if found.replica == self.replica]
        with contextlib.suppress(Fault, TimeoutError):
            async with asyncio.timeout(_PUBLISH):
                await asyncio.gather(*(self._put(subjects.tunnel(uid), TunnelHolder()) for uid in mine))
                await self._put(subjects.gateway(self.replica), TunnelHolder())

    async def _follow(self) -> None:
        while True:
            begun = False
            try:
                async with contextlib.aclosing(self._bus.follow(streams.TUNNELS.name, after=0)) as source:
                    async for received in source:
                        if received.gap and begun:
                            break  # the bucket was made anew, perhaps: read it from its start
                        if not begun:
                            begun = True
                            self._anew()
                        self._heard(received)
            except Fault as fault:
                _log.warning("tunnels.not_followed", problem=str(fault))
            await asyncio.sleep(_RETRY * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter

    def _anew(self) -> None:
        """The bucket is read from its start: what is held here is told again, what others told stays until it is seen to be gone."""
        self._unheard, self._echoes = set(self._map), 0
        self._tell_all()

    def _tell_all(self) -> None:
        for uid in [uid for uid, found in self._map.items() if found.replica == self.replica]:
            del self._map[uid]
        self._dirty.update(self._holdings())
        self._some.set()

    def _heard(self, received: Received) -> None:
        try:
            holder = TunnelHolder.FromString(received.data)
        except DecodeError:
            return
        if received.subject.startswith(_CLUSTERS):
            self._heard_cluster(received.subject[len(_CLUSTERS) :], holder)
        elif received.subject.startswith(_GATEWAYS):
            self._heard_gateway(received.subject[len(_GATEWAYS) :], holder)

    def _heard_gateway(self, replica: str, holder: TunnelHolder) -> None:
        now = asyncio.get_running_loop().time()
        if replica == self.replica:
            self._heard_ourselves(now)
            self._echoes += 1
            if self._echoes == _REPLAYED:
                for uid in self._unheard:
                    self._map.pop(uid, None)
        elif holder.replica:
            self._gateways[replica] = _Gateway(holder, now)
        else:
            self._gateways.pop(replica, None)

    def _heard_ourselves(self, now: float) -> None:
        """Whoever lived before an outage of the broker gets time to be heard after it; who is long gone is forgotten."""
        since = now if now - self._echoed > LAPSE / 2 else 0.0
        self._gateways = {replica: known for replica, known in self._gateways.items() if self.lives(replica)}
        for known in self._gateways.values():
            known.heard = max(known.heard, since)
        self._echoed = now

    def _heard_cluster(self, uid: str, holder: TunnelHolder) -> None:
        self._unheard.discard(uid)
        if holder.replica:
            self._map[uid] = holder
        else:
            self._map.pop(uid, None)
        if holder.replica not in ("", self.replica):
            known = self._gateways.setdefault(holder.replica, _Gateway(holder, 0.0))
            known.heard = asyncio.get_running_loop().time()
        if holder.replica == self.replica or uid in self._holdings():
            self.touch(uid)

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + _AFRESH
        while True:
            try:
                await self._beat_once()
                if clock() >= due:
                    self._tell_all()
                    due = clock() + _AFRESH
            except Fault as fault:
                _log.warning("tunnels.not_told", problem=str(fault))
                await self._ensured()
                self._tell_all()
                pause = _RETRY
            else:
                pause = _BEAT
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter

    async def _ensured(self) -> None:
        while True:
            try:
                await self._bus.ensure_stream(streams.TUNNELS)
            except Fault as fault:
                _log.warning("tunnels.no_bucket", problem=str(fault))
                await asyncio.sleep(_RETRY * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter
            else:
                return

    async def _beat_once(self) -> None:
        sequence = await self._put(
            subjects.gateway(self.replica), TunnelHolder(replica=self.replica, address=self._address, draining=self._draining)
        )
        if sequence <= self._sequence:  # the bucket was made anew
            self._tell_all()
        self._sequence = sequence

    async def _tell(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            due, self._dirty = self._dirty, set()
            try:
                await asyncio.gather(*(self._settle(uid) for uid in due))
            except Fault as fault:
                self._dirty |= due
                self._some.set()
                _log.warning("tunnels.not_told", problem=str(fault))
                await asyncio.sleep(_RETRY * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter

    async def _settle(self, uid: str) -> None:
        """Makes bucket and tunnels agree on one cluster: the greater number wins."""
        told, ours = self._map.get(uid), self._holdings().get(uid)
        if ours is None:
            if told is not None and told.replica == self.replica:
                await self._put(subjects.tunnel(uid), TunnelHolder())
        elif told is not None and told.replica != self.replica and told.number > ours.number and self.lives(told.replica):
            assert self._own is not None
            self._own.superseded(uid, told.number)
        elif told is None or (told.replica, told.session) != (self.replica, ours.session):
            ours.replica, ours.address = self.replica, self._address
            await self._put(subjects.tunnel(uid), ours)

    def _holdings(self) -> Mapping[str, TunnelHolder]:
        return self._own.holdings() if self._own is not None and not self._left else {}

    async def _put(self, subject: str, holder: TunnelHolder) -> int:
        return await self._bus.publish(subject, holder, timeout=_PUBLISH)
