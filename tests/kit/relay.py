"""A relay in front of a server of the kit, TCP or a unix socket, that a test cuts, freezes and opens again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_CHUNK = 64 * 1024


class Relay:
    """Passes bytes on unless told otherwise; `dial` opens what lies behind."""

    def __init__(self, dial: Callable[[], Awaitable[Streams]]) -> None:
        self._dial = dial
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refuses = False

    def cut(self) -> None:
        """All connections break, and new ones break at once, as when the server is gone."""
        self._refuses = True
        for writer in self._open:
            writer.transport.abort()

    def freeze(self) -> None:
        """Nothing comes through any more, and nothing breaks."""
        self._flowing.clear()

    def mend(self) -> None:
        """Passes everything on again."""
        self._refuses = False
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if self._refuses:
            writer.transport.abort()
            return
        behind_reader, behind = await self._dial()
        both = (writer, behind)
        self._open.update(both)
        try:
            await asyncio.gather(self._pump(reader, behind), self._pump(behind_reader, writer))
        except (ConnectionError, OSError):
            pass
        finally:
            self._open.difference_update(both)
            for end in both:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    def end(self) -> None:
        """Breaks what is left."""
        self.cut()
        self._flowing.set()


@contextlib.asynccontextmanager
async def tcp(host: str, port: int) -> AsyncIterator[tuple[Relay, int]]:
    """A relay before a TCP port, and the port to use instead."""
    relay = Relay(lambda: asyncio.open_connection(host, port))
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    async with server:
        try:
            yield relay, int(server.sockets[0].getsockname()[1])
        finally:
            relay.end()


@contextlib.asynccontextmanager
async def unix(path: Path, instead: Path) -> AsyncIterator[Relay]:
    """A relay before a unix socket, at another path."""
    relay = Relay(lambda: asyncio.open_unix_connection(path))
    server = await asyncio.start_unix_server(relay.serve, instead)
    async with server:
        try:
            yield relay
        finally:
            relay.end()
