"""Joins a stream with a TCP connection, such as one to the message broker: bytes both ways, each way with its back-pressure."""

from __future__ import annotations

import asyncio
import contextlib

from libs.tunnel.errors import Reset, StreamEnded
from libs.tunnel.stream import Stream

PIECE = 32 * 1024
_LAST_SECONDS = 2.0  # for the other direction, once one has ended


async def joined(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes bytes until both directions are over, the second one soon after the first; then both ends are closed."""
    ways = [asyncio.ensure_future(way) for way in (_to_stream(reader, stream), _to_socket(stream, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(ways, timeout=_LAST_SECONDS)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        stream.reset(Reset.DONE, "the connection was closed")
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await writer.wait_closed()


async def _to_stream(reader: asyncio.StreamReader, stream: Stream) -> None:
    with contextlib.suppress(OSError, StreamEnded):
        while piece := await reader.read(PIECE):
            await stream.write(piece)
        stream.end()


async def _to_socket(stream: Stream, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, StreamEnded):
        while piece := await stream.read():
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
