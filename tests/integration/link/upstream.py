"""An API server double on raw sockets: it keeps what came, byte for byte, and answers what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Answer = Callable[["Came", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Came:
    """One request as it was on the wire."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        """All values of a header."""
        return [v for n, v in self.headers if n.lower() == name.lower()]


@dataclass
class Upstream:
    """The server."""

    port: int = 0
    came: list[Came] = field(default_factory=list)
    answer: Answer | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    open: int = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.open += 1
        try:
            while (came := await self._read(reader)) is not None:
                self.came.append(came)
                await (self.answer or ok)(came, reader, writer)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.open -= 1
            self.closed.set()

    async def _read(self, reader: asyncio.StreamReader) -> Came | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *rest = head[:-4].decode("latin-1").split("\r\n")
        came = Came(first, [(n, v.strip()) for n, _, v in (line.partition(":") for line in rest)])
        if length := came.all("content-length"):
            came.body = await reader.readexactly(int(length[0]))
        elif came.all("transfer-encoding"):
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                came.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        return came


async def ok(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A plain answer."""
    del came, reader
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    await writer.drain()


def raw(content: bytes, *, close: bool = True) -> Answer:
    """An answer of exactly these bytes."""

    async def answer(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        if close:
            writer.close()

    return answer


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """A server that runs."""
    found = Upstream()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
