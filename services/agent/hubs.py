"""Where the hub is: one or more addresses, taken in turn in random order, so that agents spread over its gateways."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence


class Hubs:
    """Chooses where to dial next.

    An address that was dialled last comes again only when all others were tried; a name that resolves to several
    addresses counts as all of them.

    Args:
        addresses: `host:port`, or `https://host:port` for the edge.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._tried: set[str] = set()
        self._last = ""

    @classmethod
    def of(cls, text: str) -> Hubs:
        """From a list with commas."""
        return cls([part.strip() for part in text.split(",") if part.strip()])

    async def next(self) -> str:
        """The next address to dial."""
        found = await self._resolved()
        fresh = [address for address in found if address not in self._tried]
        if not fresh:
            self._tried.clear()
            fresh = [address for address in found if address != self._last] or found
        self._last = random.choice(fresh)  # noqa: S311 -- spreads load
        self._tried.add(self._last)
        return self._last

    def reached(self) -> None:
        """The last one answered: after it all others are worth a try."""
        self._tried = {self._last}

    async def _resolved(self) -> list[str]:
        found: dict[str, None] = {}
        for address in self._addresses:
            for one in await _resolve(address):
                found[one] = None
        return list(found)


async def _resolve(address: str) -> list[str]:
    """The addresses of a name; the edge's URL stays as it is, since proxies may resolve it."""
    if "://" in address:
        return [address]
    host, _, port = address.rpartition(":")
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return [address]  # dialling tells what is wrong
    return [f"[{info[4][0]}]:{port}" if info[0] == socket.AF_INET6 else f"{info[4][0]}:{port}" for info in infos]
