"""Takes a connection over from the HTTP server after an upgrade, for WebSocket and SPDY alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from libs.faults import Fault
from libs.tunnel.kubernetes import Header
from services.gateway.link.exchange import Exchange

_MARK = 64 * 1024
SLOW_SECONDS = 60.0  # a client that takes nothing for so long is dropped


class Hijacked(asyncio.Protocol):
    """Raw bytes of a client, with back pressure both ways."""

    def __init__(self, former: Any, transport: asyncio.Transport) -> None:
        self._former = former  # the HTTP server's protocol, which must hear of the end
        self._transport = transport
        self._in: deque[bytes] = deque()
        self._size = 0
        self._paused_reading = False
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @classmethod
    def take(cls, request: web.Request, upgrade: str, headers: Iterable[Header]) -> Hijacked:
        """Answers 101 and takes the connection; ConnectionResetError when it is gone."""
        former = request.protocol
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client went away")
        taken = cls(former, transport)
        early = bytes(getattr(former, "_message_tail", b""))
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Connection: Upgrade", b"Upgrade: " + upgrade.encode()]
        lines += [name.encode() + b": " + value for name, value in headers if name not in ("connection", "upgrade", "content-length")]
        transport.set_write_buffer_limits(high=_MARK)
        transport.set_protocol(taken)
        if getattr(former, "_reading_paused", False):
            transport.resume_reading()
        transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        if early:
            taken.data_received(early)
        return taken

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""
        while not self._in:
            if self._ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        chunk = self._in.popleft()
        self._size -= len(chunk)
        if self._paused_reading and self._size < _MARK // 2 and not self._transport.is_closing():
            self._paused_reading = False
            self._transport.resume_reading()
        return chunk

    async def write(self, content: bytes) -> None:
        """Sends bytes; ConnectionResetError when the client is gone or takes nothing for a minute."""
        if self._ended:
            raise ConnectionResetError("the client went away")
        self._transport.write(content)
        if self._room is not None:
            try:
                async with asyncio.timeout(SLOW_SECONDS):
                    await asyncio.shield(self._room)
            except TimeoutError as error:
                self._transport.abort()
                raise ConnectionResetError("the client takes nothing") from error

    def close(self) -> None:
        """Sends what is buffered and closes."""
        self._transport.close()

    # -- what the transport tells

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._in.append(data)
        self._size += len(data)
        if self._size >= _MARK and not self._paused_reading:
            self._paused_reading = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        """The client closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; the HTTP server hears of it too, or it would keep it for ever."""
        self._ended = True
        _wake(self._reader)
        _wake(self._room)
        self._former.connection_lost(exc)

    def pause_writing(self) -> None:
        """The buffer is full."""
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """The buffer has room."""
        _wake(self._room)
        self._room = None


class Taken(web.StreamResponse):
    """What a handler returns when the connection is no longer HTTP: nothing is written."""

    def __init__(self) -> None:
        super().__init__(status=101)

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing to prepare."""
        del request

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing to end."""
        del data


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def join(client: Hijacked, exchange: Exchange) -> None:
    """Raw bytes both ways until one side ends."""
    up = asyncio.create_task(_up(client, exchange), name="kubernetes upgraded up")
    down = asyncio.create_task(_down(client, exchange), name="kubernetes upgraded down")
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        client.close()
        up.cancel()
        down.cancel()
        await asyncio.wait({up, down})


async def _up(client: Hijacked, exchange: Exchange) -> None:
    with contextlib.suppress(Fault, ConnectionError):
        while chunk := await client.read():
            await exchange.write(chunk)


async def _down(client: Hijacked, exchange: Exchange) -> None:
    with contextlib.suppress(Fault, ConnectionError):
        while chunk := await exchange.read():
            await client.write(chunk)
