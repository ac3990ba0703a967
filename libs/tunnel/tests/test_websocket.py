"""The WebSocket carrier by itself: what it queues below the multiplexer, and that a peer which takes nothing cannot hold it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from libs.tunnel import Limits
from libs.tunnel.tests.pipe import refuse
from libs.tunnel.websocket import SocketConnection

_NOTSENT_LOWAT = 25


@asynccontextmanager
async def deaf(limits: Limits) -> AsyncIterator[tuple[SocketConnection, aiohttp.ClientWebSocketResponse]]:
    """A connection to a peer that reads nothing and says nothing."""
    over = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        assert request.transport is not None
        request.transport.pause_reading()
        await over.wait()
        return answer

    app = web.Application()
    app.add_routes([web.get("/", serve)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/") as carried:
            yield SocketConnection(carried, odd=False, accept=lambda _: refuse, limits=limits), carried
    finally:
        over.set()
        await runner.cleanup()


async def test_a_peer_that_takes_nothing_is_let_go_in_the_middle_of_a_write() -> None:
    """The kernel's buffers are full and nothing comes: the silence ends it, whoever waits to write; so an agent can dial again."""
    async with deaf(Limits(ping_every=0.2, ping_timeout=0.3, streams=100)) as (connection, _):
        running = asyncio.create_task(connection.run())
        for _ in range(100):
            connection.mux.open(b"", b"x" * 8192)._queue(memoryview(bytes(200_000)), 0)
        async with asyncio.timeout(30):
            await connection.mux.closed()
            await running


async def test_little_waits_in_the_kernel() -> None:
    """As over TCP: what is unsent below the scheduler is what a small call cannot overtake."""
    async with deaf(Limits()) as (connection, carried):
        sock = carried.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT) == 128 * 1024
        connection.mux.abort("done")
