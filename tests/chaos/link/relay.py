"""A relay between agents and hub that delays, stalls, cuts and refuses."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

from tests.chaos.link.network import AGENTS, HUB, Loopback

_CHUNK = 64 * 1024
_QUEUE = 64


@dataclass(frozen=True, slots=True)
class Route:
    """One port that is relayed.

    Attributes:
        name: what it is for.
        back: the hub's address and port.
        inside: whether it goes over the namespace's cables; otherwise the loopback.
    """

    name: str
    back: tuple[str, int]
    inside: bool = True


@dataclass
class Relay:
    """Passes bytes on, in the way it is told.

    Attributes:
        delay: seconds that each chunk waits, each way.
        refused: names of routes whose connections are dropped at once.
        ports: where each route is found, by name.
    """

    network: Loopback
    delay: float = 0.0
    refused: set[str] = field(default_factory=set)
    ports: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: dict[asyncio.Task[None], str] = {}
        self._servers: list[asyncio.Server] = []
        self._rng = random.Random(0)

    async def open(self, route: Route) -> None:
        """Starts to relay a port."""
        loopback = Loopback()
        place = self.network if route.inside else loopback
        listening = await place.socket()
        listening.bind((place.relay, 0))

        def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._relayed(route, reader, writer), name=f"relay {route.name}")
            self._connections[task] = route.name
            task.add_done_callback(lambda done: self._connections.pop(done, None))

        self._servers.append(await asyncio.start_server(taken, sock=listening))
        host, port = listening.getsockname()
        self.ports[route.name] = (host, port)

    def stall(self) -> None:
        """Passes nothing on, in either direction, and takes no more in than fits."""
        self._flowing.clear()

    def flow(self) -> None:
        """Passes on again."""
        self._flowing.set()

    async def unplug(self, *cables: str) -> None:
        """Cables are unplugged: what is sent is lost silently."""
        for cable in cables:
            await self.network.plug(cable, into=False)
        if not self.network.kernel:
            self.stall()

    async def plug(self) -> None:
        """All cables are in again."""
        for cable in (AGENTS, HUB):
            await self.network.plug(cable, into=True)
        if not self.network.kernel:
            self.flow()

    def cut(self, *names: str) -> int:
        """Drops the connections of routes, all when none is named; how many there were."""
        tasks = [task for task, name in self._connections.items() if not names or name in names]
        for task in tasks:
            task.cancel()
        return len(tasks)

    async def close(self) -> None:
        """Ends all."""
        for server in self._servers:
            server.close()
        tasks = list(self._connections)
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relayed(self, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            if route.name in self.refused:
                return
            back = await (self.network if route.inside else Loopback()).socket()
            back.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(back, route.back)
            except OSError:
                back.close()
                return
            there, onward = await asyncio.open_connection(sock=back)
            writers.append(onward)
            ways = [asyncio.create_task(self._pump(reader, onward)), asyncio.create_task(self._pump(there, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way; ends with the connection. Chunks keep their order whatever the delay."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)

        async def fill() -> None:
            while True:
                chunk = await reader.read(_CHUNK)
                await queue.put((loop.time() + self.delay * self._rng.uniform(0.7, 1.3), chunk))
                if not chunk:
                    return

        filling = asyncio.create_task(fill())
        try:
            while True:
                due, chunk = await queue.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self._flowing.wait()
                if not chunk:
                    return
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return
        finally:
            filling.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await filling
