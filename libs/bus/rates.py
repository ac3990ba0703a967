"""Finds connections that send more than they may, over a time long enough for a burst to be no offence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from libs import log
from libs.bus.system import Guest, System
from libs.faults import Fault

_log = log.get("libs.bus.rates")


@dataclass(frozen=True, slots=True)
class Rate:
    """The most that one connection may send, on average over `seconds`.

    The defaults leave room for an agent that lists a cluster of 100,000 objects afresh.
    """

    messages: float = 10_000.0
    bytes: float = 16.0 * 1024 * 1024
    seconds: float = 15.0


async def offenders(system: System, rate: Rate, prefix: str) -> AsyncIterator[Guest]:
    """Connections over the rate whose name starts with a prefix, as they are found; iterate for ever."""
    before: dict[tuple[str, int], Guest] = {}
    clock = asyncio.get_running_loop().time
    last = clock()
    while True:
        await asyncio.sleep(rate.seconds)
        try:
            now = {(g.server, g.cid): g async for g in system.guests() if g.name.startswith(prefix)}
        except Fault as fault:
            _log.warning("rates.unknown", error=str(fault))
            continue
        passed, last = clock() - last, clock()
        for key, guest in now.items():
            earlier = before.get(key)
            messages = guest.messages - (earlier.messages if earlier else 0)
            size = guest.bytes - (earlier.bytes if earlier else 0)
            if messages > rate.messages * passed or size > rate.bytes * passed:
                _log.warning("rates.exceeded", who=guest.name, messages=messages, bytes=size, seconds=round(passed, 1))
                yield guest
        before = now
