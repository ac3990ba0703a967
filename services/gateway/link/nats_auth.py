"""Who may use the message broker: an agent, by its certificate, for its own cluster's subjects and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

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
Allowed = Callable[[str, str], Awaitable[bool] | bool]


class NatsAuth:
    """Answers the broker's auth callout for agents. Hub services never come here: the broker knows their keys.

    Args:
        url: the broker's.
        tls: the gateway's (certificate, key, CA) files.
        seeds: folder with `callout.nk`, `system.nk` and `issuer.nk`.
        allowed: whether a cluster (uid) is joined and its certificate (serial number, hex) not revoked.
        rate: what one agent may send; above it, it is put out for a while.
    """

    def __init__(self, url: str, tls: Tls, seeds: Path, allowed: Allowed, *, rate: Rate = _RATE) -> None:
        self._allowed = allowed
        self._rate = rate
        self._system = System(url, tls, seeds / "system.nk")
        self._callout = Callout(url, tls, seeds, self._decide, on_server=self._system.seen)
        self._put_out: dict[str, float] = {}

    async def run(self) -> None:
        """Answers, and watches rates, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._callout.run(), name="nats callout")
                group.create_task(self._watch(), name="nats rates")
        finally:
            await self._system.close()

    async def revoke(self, uid: str) -> int:
        """Ends a cluster's connections, after `allowed` says no; how many there were. Unavailable when the broker is away."""
        return await self._system.kick(connection_name(uid))

    async def _watch(self) -> None:
        async for guest in offenders(self._system, self._rate, _PREFIX):
            self._put_out[guest.name] = time.monotonic() + _PENALTY
            with contextlib.suppress(Fault):
                await self._system.end(guest)

    async def _decide(self, spiffe: str, serial: str) -> Permissions:
        uid = spiffe.removeprefix(_CLUSTER)
        if not spiffe.startswith(_CLUSTER) or not uid or subjects.token(uid) != uid:
            raise Refused(f"{spiffe} is no agent")
        if self._put_out.get(connection_name(uid), 0.0) > time.monotonic():
            raise Refused(f"cluster {uid} sent too much and must wait")
        self._put_out.pop(connection_name(uid), None)
        allowed = self._allowed(uid, serial)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if not allowed:
            raise Refused(f"cluster {uid} is not joined, or its certificate revoked")
        return permissions(uid)


def permissions(uid: str) -> Permissions:
    """What an agent may do; publishing into a stream needs its inbox, for the ack, and no more."""
    return Permissions(
        connection_name(uid),
        publish=(subjects.cluster(uid),),
        subscribe=(subjects.desired(uid), subjects.interest(uid), f"{subjects.inbox(uid)}.>"),
    )


def connection_name(uid: str) -> str:
    """What the broker calls an agent's connections."""
    return f"{_PREFIX}{uid}"
