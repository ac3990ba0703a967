"""Who may use the message broker: an agent, by its certificate, for its own cluster's subjects and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from libs import log
from libs.bus import subjects
from libs.bus.callout import Callout, Permissions, Refused
from libs.bus.connection import Tls
from libs.bus.rates import Rate, offenders
from libs.bus.system import System
from libs.faults import Fault

_CLUSTER = "spiffe://kubegems/cluster/"
_PREFIX = "cluster-"
_PENALTY = 30.0  # seconds
_RATE = Rate()
_LOOKS = 4  # after a revocation: who was let in a moment before it may show a moment after it
_EVERY = 1.5  # seconds between them
_log = log.get("services.gateway.link")
Held = tuple[str, str]
Refusing = Callable[[Collection[Held]], Awaitable[Collection[Held]]]


class NatsAuth:
    """Answers the broker's auth callout for agents. Hub services never come here: the broker knows their keys.

    Args:
        url: the broker's.
        tls: the gateway's (certificate, key, CA) files.
        seeds: folder with `callout.nk`, `system.nk` and `issuer.nk`.
        refused: those of some (cluster uid, serial number in hex) whose cluster is not joined, or whose certificate is revoked.
        rate: what one agent may send; above it, it is put out for a while.
    """

    def __init__(self, url: str, tls: Tls, seeds: Path, refused: Refusing, *, rate: Rate = _RATE) -> None:
        self._refused = refused
        self._rate = rate
        self._system = System(url, tls, seeds / "system.nk")
        self._callout = Callout(url, tls, seeds, self._decide, on_server=self._system.seen)
        self._put_out: dict[str, float] = {}
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Answers, ends what was revoked, and watches rates, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._callout.run(), name="nats callout")
                group.create_task(self._look(), name="nats revocations")
                group.create_task(self._watch(), name="nats rates")
        finally:
            await self._system.close()

    async def revoke(self, uid: str) -> int:
        """Ends a cluster's connections, after `refused` names them; how many there were. Unavailable when the broker is away."""
        return await self._system.kick(f"{_PREFIX}{uid}/")

    def wake(self) -> None:
        """Something was revoked, perhaps by another gateway: looks who is still connected."""
        self._woken.set()

    async def _look(self) -> None:
        """Once at the start, since a gateway may have stopped between a revocation and this; then whenever it is woken."""
        looks = 1
        while True:
            if not looks:
                await self._woken.wait()
            if self._woken.is_set():
                self._woken.clear()
                looks = _LOOKS
            try:
                await self._end_refused()
                looks -= 1
            except (Fault, OSError, TimeoutError) as error:
                _log.warning("broker.revocations_not_kept", problem=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._woken.wait()

    async def _end_refused(self) -> None:
        guests = [guest async for guest in self._system.guests() if guest.name.startswith(_PREFIX)]
        refused = set(await self._refused({_held(guest.name) for guest in guests}))
        for guest in guests:
            if _held(guest.name) in refused:
                _log.info("broker.put_out", who=guest.name)
                await self._system.end(guest)

    async def _watch(self) -> None:
        async for guest in offenders(self._system, self._rate, _PREFIX):
            self._put_out[_held(guest.name)[0]] = time.monotonic() + _PENALTY
            with contextlib.suppress(Fault):
                await self._system.end(guest)

    async def _decide(self, spiffe: str, serial: str) -> Permissions:
        uid = spiffe.removeprefix(_CLUSTER)
        if not spiffe.startswith(_CLUSTER) or not uid or subjects.token(uid) != uid:
            raise Refused(f"{spiffe} is no agent")
        if self._put_out.get(uid, 0.0) > time.monotonic():
            raise Refused(f"cluster {uid} sent too much and must wait")
        self._put_out.pop(uid, None)
        if await self._refused({(uid, serial)}):
            raise Refused(f"cluster {uid} is not joined, or its certificate revoked")
        return permissions(uid, serial)


def permissions(uid: str, serial: str) -> Permissions:
    """What an agent may do; publishing into a stream needs its inbox, for the ack, and no more.

    The broker shows the name with each connection: by it a revoked certificate's is found.
    """
    return Permissions(
        f"{_PREFIX}{uid}/{serial}",
        publish=(subjects.cluster(uid),),
        subscribe=(subjects.desired(uid), subjects.interest(uid), f"{subjects.inbox(uid)}.>"),
    )


def _held(name: str) -> Held:
    """Cluster and certificate of a connection, by its name."""
    uid, _, serial = name.removeprefix(_PREFIX).partition("/")
    return uid, serial
