"""The HTTP server: aiohttp, and nothing outside of this file knows it. TLS, limits, raw routes, drain."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing

from aiohttp import web

from libs.faults import Fault
from libs.rest import errors, streams
from libs.rest.api import SSE, Answer, Api, Request
from libs.rest.errors import HttpFault

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Document = Callable[[], Awaitable[tuple[int, Mapping[str, str], bytes]]]
MAX_BODY = 4 * 1024 * 1024
_MAX_LINE = 16 * 1024
_MAX_FIELD = 16 * 1024
_KEEP_ALIVE = 75.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Strict-Transport-Security": "max-age=31536000",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


class HttpServer:
    """Serves an `Api` and raw routes beside it; build it, add routes, `await start()`, `await drain()`.

    Args:
        api: answers every path that no raw route has.
        max_body: bytes of a request's body; more is 413.
    """

    def __init__(self, api: Api, *, max_body: int = MAX_BODY) -> None:
        self._api, self._max_body = api, max_body
        self._app = web.Application(client_max_size=max_body)
        self._runner: web.AppRunner | None = None
        self._open: set[asyncio.Task[None]] = set()

    def add_raw_route(self, path: str, handler: Handler, method: str = "*") -> None:
        """Mounts an aiohttp handler, such as at `/k8s/clusters/{name}/{tail:.*}`; it owns request and answer entirely."""
        self._app.router.add_route(method, path, handler)

    def add_document(self, path: str, produce: Document) -> None:
        """Serves a small JSON document to everyone who asks by GET, such as a probe."""

        async def handle(_request: web.Request) -> web.StreamResponse:
            status, headers, body = await produce()
            return _response(Answer(status, "application/json", body, dict(headers)))

        self._app.router.add_get(path, handle)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listens and returns the port; without TLS for tests on loopback only. OSError when it is taken."""
        self._app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            self._app, handler_cancellation=True, access_log=None, keepalive_timeout=_KEEP_ALIVE,
            max_line_size=_MAX_LINE, max_field_size=_MAX_FIELD, auto_decompress=False, shutdown_timeout=5.0,
        )  # fmt: skip
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=tls, backlog=512)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def drain(self) -> None:
        """Takes no new connections, lets answers under way end for 5 s, then closes."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await self._body(request)
        except HttpFault as fault:
            return _response(_refusal(fault))
        answer = await self._api.answer(_given(request, body))
        if answer.items is None:
            return _response(answer)
        return await _stream(request, answer)

    async def _body(self, request: web.Request) -> bytes:
        if not request.body_exists:
            return b""
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise HttpFault.of(415, "UNSUPPORTED_MEDIA_TYPE", "the body must not be compressed")
        too_large = HttpFault.of(413, "BODY_TOO_LARGE", f"the body has more than {self._max_body} bytes", {"Connection": "close"})
        if (request.content_length or 0) > self._max_body:
            raise too_large
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large from error


def _given(request: web.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    doubled: set[str] = set()
    for name, value in request.headers.items():
        lower = name.lower()
        if lower in headers:
            doubled.add(lower)
        headers[lower] = value
    return Request(request.method, request.raw_path, headers, body, request.remote or "", frozenset(doubled))


def _refusal(fault: HttpFault) -> Answer:
    status, headers, body = errors.answer(fault)
    return Answer(status, "application/json", body, headers)


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=_HEADERS | answer.headers | {"Content-Type": answer.content_type})


async def _stream(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Streams; a fault before the first item is an error answer of its own. aiohttp cancels us when the client goes."""
    assert answer.items is not None
    assert answer.method is not None
    form = streams.SSE_FORM if answer.content_type == SSE else streams.NDJSON_FORM
    response = web.StreamResponse()
    async with aclosing(streams.chunks(answer.items, answer.method.response_class, form)) as running:
        try:
            await anext(running)
        except Fault as fault:
            status, headers, body = errors.answer(fault)
            return _response(Answer(status, "application/json", body, answer.headers | headers))
        response.headers.update(_HEADERS | answer.headers | {"Content-Type": answer.content_type})
        await response.prepare(request)  # sends the headers now, not with the first event
        async for chunk in running:
            if chunk:
                await response.write(chunk)
    await response.write_eof()
    return response
