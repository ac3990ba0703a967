"""A TCP connection carried by a stream: every byte, each end, bounded memory, and no call has to wait for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from libs.tunnel import Limits, Mux, Stream
from libs.tunnel.joined import joined
from libs.tunnel.tests.pipe import echo, pair, refuse

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def carried(handler: Handler, limits: Limits | None = None) -> AsyncIterator[tuple[Mux, Mux]]:
    """Streams with header `tcp` are joined with a server that runs `handler`; others echo."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def serve(stream: Stream, header: bytes) -> None:
        if header == b"tcp":
            await joined(stream, *await asyncio.open_connection("127.0.0.1", port))
        else:
            await echo(stream, header)

    agent, hub = pair(refuse, serve, limits)
    try:
        yield agent, hub
    finally:
        agent.abort("over")
        server.close()


async def test_bytes_go_both_ways_and_the_ends_too() -> None:
    """A megabyte comes back as it went; our end reaches the server, the server's last words reach us."""

    async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(10_000):
            writer.write(piece)
            await writer.drain()
        writer.write(b"bye")
        writer.close()

    content = secrets.token_bytes(1 << 20)
    async with carried(back) as (agent, hub):
        stream = agent.open(b"tcp")

        async def send() -> None:
            await stream.write(content)
            stream.end()

        sending = asyncio.create_task(send())
        found = bytearray()
        while piece := await stream.read():
            found += piece
        await sending
        assert bytes(found) == content + b"bye"
        await _gone(hub)


async def test_a_server_that_goes_ends_the_stream_after_its_last_words(eventually: Any) -> None:
    """What it said before it closed is read, then the end; nothing stays open at either side."""

    async def refuse_all(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR 'Authorization Violation'\r\n")
        writer.close()

    async with carried(refuse_all) as (agent, hub):
        stream = agent.open(b"tcp")
        assert await stream.read() == b"-ERR 'Authorization Violation'\r\n"
        assert await stream.read() == b""
        stream.end()
        await eventually(lambda: not hub.streams and not agent.streams, within=5)


async def test_a_stuck_server_holds_a_window_and_calls_go_on() -> None:
    """Who floods a server that reads nothing waits; a call beside it is answered meanwhile."""
    over = asyncio.Event()

    async def stuck(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with carried(stuck, Limits(window=64 * 1024, window_max=64 * 1024)) as (agent, hub):
        stream = agent.open(b"tcp")
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await stream.write(bytes(16 * 1024))
                sent += 16 * 1024

        flooding = asyncio.create_task(flood())
        for _ in range(50):
            call = agent.open(b"call", b"ping", end=True)
            assert await call.receive() == b"ping"
            assert await call.receive() is None
        most = 32 << 20  # what the kernel's two buffers take, and our windows
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.2)
        assert sent < most
        assert hub.stream(stream.id) is not None
        assert hub.stream(stream.id).held <= 64 * 1024  # type: ignore[union-attr] # it is there
        flooding.cancel()
        over.set()
        await asyncio.gather(flooding, return_exceptions=True)


async def _gone(mux: Mux) -> None:
    async with asyncio.timeout(10):
        while mux.streams:
            await asyncio.sleep(0.01)
