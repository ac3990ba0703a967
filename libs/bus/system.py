"""What account SYS may do: see the broker's connections, and end them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from libs.bus.bus import Bus
from libs.bus.connection import Tls
from libs.bus.server import HUB
from libs.faults import Fault

_PAGE = 1024


@dataclass(frozen=True, slots=True)
class Guest:
    """One connection, as the broker counts it.

    Attributes:
        server: id of the server that holds it.
        cid: its number there.
        name: whose it is, as the callout said.
        messages: received from it so far.
        bytes: received from it so far.
    """

    server: str
    cid: int
    name: str
    messages: int
    bytes: int


class System:
    """The gateway's power over connections.

    Args:
        url: the broker's.
        tls: our (certificate, key, CA) files.
        seed_file: `system.nk` of `libs.bus.server.Keys`.
    """

    def __init__(self, url: str, tls: Tls, seed_file: Path) -> None:
        self._url, self._tls, self._seed_file = url, tls, seed_file
        self._bus: Bus | None = None
        self._servers: set[str] = set()

    async def close(self) -> None:
        """Disconnects."""
        if self._bus is not None:
            await self._bus.close()

    def seen(self, server: str) -> None:
        """Another server of the cluster was heard of: its connections are looked at too."""
        self._servers.add(server)

    async def guests(self) -> AsyncIterator[Guest]:
        """All connections of account HUB; Unavailable when no server answers."""
        bus = await self._connected()
        first = orjson.loads(await bus.request("$SYS.REQ.SERVER.PING", b""))["server"]["id"]
        for server in self._servers | {first}:
            offset, more = 0, True
            while more:
                query = orjson.dumps({"auth": True, "acc": HUB, "limit": _PAGE, "offset": offset, "sort": "cid"})
                try:
                    reply = orjson.loads(await bus.request(f"$SYS.REQ.SERVER.{server}.CONNZ", query))
                except Fault:
                    self._servers.discard(server)  # a server that is gone holds no connections
                    break
                found = reply["data"].get("connections") or []
                for guest in found:
                    yield Guest(server, guest["cid"], guest.get("authorized_user") or "", guest["in_msgs"], guest["in_bytes"])
                offset += len(found)
                more = len(found) == _PAGE

    async def kick(self, prefix: str) -> int:
        """Ends the connections whose name begins so; how many. They come back only if they are still let in."""
        found = [guest async for guest in self.guests() if guest.name.startswith(prefix)]
        for guest in found:
            await self.end(guest)
        return len(found)

    async def end(self, guest: Guest) -> None:
        """Ends one connection."""
        bus = await self._connected()
        await bus.request(f"$SYS.REQ.SERVER.{guest.server}.KICK", orjson.dumps({"cid": guest.cid}))

    async def _connected(self) -> Bus:
        if self._bus is None:
            self._bus = await Bus.connect(self._url, name="system", tls=self._tls, nkey_seed_file=self._seed_file)
        return self._bus
