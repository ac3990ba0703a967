"""Two ends joined by the carriers of real life, on the loopback: mutual TLS over TCP, and a WebSocket on an HTTPS edge."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from libs.clock import SystemClock
from libs.crypt.ca import Authority
from libs.tunnel import Limits, Mux, tcp, websocket
from libs.tunnel.tests.pipe import Serve

CARRIERS = ("tcp", "websocket")
NAME = "hub.test.internal"


def credentials(folder: Path) -> None:
    """A CA, and a certificate that both ends use."""
    now = SystemClock().now()
    authority, pair = Authority.create("test", now=now)
    pair.write(folder, "ca")
    authority.issue("end", now=now, lifetime=timedelta(hours=1), dns=(NAME,)).write(folder, "end")


@asynccontextmanager
async def listening(
    carrier: str, folder: Path, accept: Serve, limits: Limits | None = None, made: Callable[[Mux], None] = lambda _: None
) -> AsyncIterator[int]:
    """The hub's end of every tunnel that is dialled; the port."""

    def begun(mux: Mux) -> None:
        mux.hello(b"hub")
        made(mux)

    files = [folder / name for name in ("end.crt", "end.key", "ca.crt")]
    if carrier == "tcp":
        server = await tcp.listen(
            "127.0.0.1", 0, tcp.server_tls(*files),
            lambda: tcp.Connection(odd=True, accept=lambda _: accept, limits=limits, on_made=lambda it: begun(it.mux)),  # type: ignore[arg-type,return-value] # awaitable functions are enough
        )  # fmt: skip
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
        return

    async def served(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(websocket.PROTOCOL,), compress=False, max_msg_size=websocket.MOST_MESSAGE)
        await socket.prepare(request)
        await websocket.challenge(socket, "hub", files[2].read_text(), SystemClock().now())
        connection = websocket.SocketConnection(socket, odd=True, accept=lambda _: accept, limits=limits)  # type: ignore[arg-type,return-value] # as above
        begun(connection.mux)
        await connection.run()
        return socket

    edge = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    edge.load_cert_chain(files[0], files[1])
    app = web.Application()
    app.add_routes([web.get(websocket.PATH, served)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=edge).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def dialled(carrier: str, folder: Path, port: int, accept: Serve, limits: Limits | None = None) -> AsyncIterator[Mux]:
    """The agent's end, greeted."""
    files = [folder / name for name in ("end.crt", "end.key", "ca.crt")]
    async with contextlib.AsyncExitStack() as stack:
        if carrier == "tcp":
            connection = await tcp.dial(
                "127.0.0.1", port, tcp.client_tls(*files),
                lambda: tcp.Connection(odd=False, accept=lambda _: accept, limits=limits), server_name=NAME,  # type: ignore[arg-type,return-value] # as above
            )  # fmt: skip
            mux = connection.mux
        else:
            carried, session = await websocket.dial(
                f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(files[2])), (files[0].read_text(), files[1].read_text()),
                server_name=NAME, accept=lambda _: accept, limits=limits,  # type: ignore[arg-type,return-value] # as above
            )  # fmt: skip
            stack.push_async_callback(session.close)
            running = asyncio.create_task(carried.run())
            stack.push_async_callback(asyncio.wait, [running])
            mux = carried.mux
        stack.push_async_callback(mux.closed)
        stack.callback(mux.abort, "over")
        mux.hello(b"agent")
        await mux.greeted(10)
        yield mux


@asynccontextmanager
async def joined(carrier: str, folder: Path, hub: Serve, agent: Serve) -> AsyncIterator[tuple[Mux, Mux]]:
    """The hub's and the agent's end, in one process."""
    made: list[Mux] = []
    credentials(folder)
    async with listening(carrier, folder, hub, made=made.append) as port, dialled(carrier, folder, port, agent) as mux:
        await made[0].greeted(10)
        yield made[0], mux
