"""One TCP connection of the HTTP server: who may open how many, how long a head may take, and errors in our own words.

aiohttp's protocol class is extended in the few places where it asks for that; `Site` puts it in.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from libs import log
from libs.clock import new_id
from libs.faults import Fault, Internal
from libs.rest import errors
from libs.rest.door import HANDSHAKE_SECONDS, Door
from libs.rest.errors import HttpFault
from libs.rpc.addresses import Proxies, network

_LATER = timedelta(seconds=1)
_TOLD = 64  # connections over the bound that are still told so; further ones get no handshake
_log = log.get("libs.rest")


@dataclass(slots=True)
class Guard:
    """Bounds of connections.

    Attributes:
        per_address: connections of one client address (of IPv6: its /64) at a time, from their first packet on; those of trusted
            proxies may be more, and count for nobody else.
        head_seconds: how long a request's line and headers may take from the first byte, or from the connection's begin.
        proxies: trusted ones.
        handshake_seconds: how long a TLS handshake may take.
        open: connections by what counts as one client.
    """

    per_address: int = 1024
    head_seconds: float = 10.0
    proxies: Proxies = field(default_factory=Proxies)
    handshake_seconds: float = HANDSHAKE_SECONDS
    open: Counter[str] = field(default_factory=Counter)

    def enter(self, address: str) -> bool | None:
        """Counts a connection: whether it may stay or is to be told that it may not. None: so many that it is neither told nor counted."""
        client = network(address)
        there = self.open[client]
        welcome = there < self.per_address or self.proxies.trusts(address)
        if not welcome and there >= self.per_address + _TOLD:
            return None
        self.open[client] += 1
        return welcome

    def leave(self, address: str) -> None:
        """A connection is gone."""
        client = network(address)
        self.open[client] -= 1
        if self.open[client] <= 0:
            del self.open[client]


class Connection(RequestHandler):
    """aiohttp's connection under a guard that has counted it; `welcome` says whether it may stay."""

    __slots__ = ("_address", "_guard", "_head_timer", "_welcome")

    def __init__(self, manager: Any, guard: Guard, address: str, *, welcome: bool, **options: Any) -> None:
        super().__init__(manager, **options)
        self._guard, self._welcome = guard, welcome
        self._address: str | None = address
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a connection, or sends one too many away."""
        if self._welcome:
            super().connection_made(transport)
            self._wait_for_head()
            return
        self._force_close = True
        limit = self._guard.per_address
        refusal = HttpFault.of(429, "TOO_MANY_CONNECTIONS", f"this address has {limit} connections already, which is all it may have")
        refusal.retry_after = _LATER
        transport.write(_raw(refusal))  # type: ignore[attr-defined] # one that writes
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets a connection."""
        self._stop_waiting()
        self.forget()
        super().connection_lost(exc)

    def forget(self) -> None:
        """Gives its place back, once."""
        if self._address is not None:
            self._guard.leave(self._address)
            self._address = None

    def data_received(self, data: bytes) -> None:
        """Watches how long a head takes, from its first byte to its last."""
        super().data_received(data)
        if self._messages or self._request_in_progress or self._upgraded:
            self._stop_waiting()
        elif self._head_timer is None and data:
            self._wait_for_head()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 -- the library's words
    ) -> web.StreamResponse:
        """What the library itself refuses, or a raw route did not catch, in the form of all our errors."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is under way; it can only be cut off")
        fault = _fault(request, status, exc)
        http_status, headers, body = errors.answer(fault, fault.metadata.get("correlation", ""))
        response = web.Response(status=http_status, body=body, headers=headers | {"Content-Type": "application/json"})
        response.force_close()
        return response

    def _wait_for_head(self) -> None:
        self._head_timer = self._loop.call_later(self._guard.head_seconds, self._head_late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        waits = self._waiter is not None and not self._waiter.done()
        if waits and not self._force_close and self.transport is not None:
            self.transport.write(_raw(HttpFault.of(408, "HEAD_TOO_SLOW", "the request's headers did not come in time")))
            self.force_close()


class Site(web.TCPSite):
    """A listener whose connections are `Connection`s."""

    __slots__ = ("_guard", "_listener")

    def __init__(self, runner: web.AppRunner, host: str, port: int, *, tls: ssl.SSLContext | None, guard: Guard) -> None:
        super().__init__(runner, host, port, ssl_context=tls, backlog=512)
        self._guard = guard

    async def start(self) -> None:
        """Listens; OSError when the port is taken."""
        self._runner._reg_site(self)  # noqa: SLF001 -- what the class we extend does in its own start
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets = [_listening(family, address, self._backlog) for family, *_, address in dict.fromkeys(found)]
        self._server = Door(sockets, self._met, self._ssl_context, self._guard.handshake_seconds)  # type: ignore[assignment] # as much of one as is asked for

    async def stop(self) -> None:
        """Takes no new connections and waits until the port is free."""
        door: Any = self._server
        await super().stop()
        if door is not None:
            await door.wait_closed()

    def _met(self, address: str) -> Connection | None:
        server: Any = self._runner.server
        welcome = self._guard.enter(address)
        if welcome is None:
            return None
        loop = asyncio.get_running_loop()
        return Connection(server, self._guard, address, welcome=welcome, loop=loop, **server._kwargs)  # noqa: SLF001 -- as above


def _listening(family: int, address: Any, backlog: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(backlog)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _fault(request: web.BaseRequest, status: int, error: BaseException | None) -> Fault:
    if status >= 500:  # noqa: PLR2004 -- our own mistakes
        correlation = new_id().hex
        _log.error("rest.crashed", path=request.path[:200], status=status, correlation=correlation, exc_info=error)
        return Internal(f"internal error; tell the operator this id: {correlation}", {"correlation": correlation})
    if isinstance(error, LineTooLong):
        return HttpFault.of(431, "HEADERS_TOO_LARGE", "the request's line or one of its headers is too long")
    return HttpFault.of(400, "MALFORMED_REQUEST", "the request is not valid HTTP/1.1")


def _raw(fault: Fault) -> bytes:
    status, headers, body = errors.answer(fault)
    headers |= {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Refused\r\n{head}\r\n".encode() + body
