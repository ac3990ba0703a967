"""The HTTP server: aiohttp, and nothing outside of this file and `connection` knows it. TLS, limits, raw routes, drain."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from aiohttp import web

from libs.clock import new_id
from libs.faults import Fault
from libs.rest import errors, streams
from libs.rest.api import JSON, SSE, Answer, Api, Request
from libs.rest.connection import Guard, Site
from libs.rest.errors import HttpFault
from libs.rest.fixed import Fixed
from libs.rpc.sizes import TooLarge

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Document = Callable[[], Awaitable[tuple[int, Mapping[str, str], bytes]]]
BODY_SECONDS = 30.0  # for a body that is read whole, and between two pieces of one that is streamed
_MAX_LINE = 16 * 1024
_MAX_FIELD = 16 * 1024
_MAX_HEADERS = 64
_KEEP_ALIVE = 75.0
_LINGER = 2.0  # for the rest of a body that nobody wants
_LARGE = 64 * 1024  # bytes of a body from which a copy of it costs more than a write
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Strict-Transport-Security": "max-age=31536000",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Server": "kubegems",  # and not which libraries in which versions
}


class HttpServer:
    """Serves an `Api` and raw routes beside it; build it, add routes, `await start()`, `await drain()`.

    Args:
        api: answers every path that no raw route has.
        guard: bounds of connections, and the proxies whose word about the client's address is taken.
        body_seconds: how long the body of a request may take, or a piece of an upload.
    """

    def __init__(self, api: Api, *, guard: Guard | None = None, body_seconds: float = BODY_SECONDS) -> None:
        self._api, self._guard, self._body_seconds = api, guard or Guard(), body_seconds
        self._app = web.Application(middlewares=[_behind(self._guard)] if self._guard.proxies else [])
        self._app.on_response_prepare.append(_with_id)
        self._runner: web.AppRunner | None = None

    def add_raw_route(self, path: str, handler: Handler, method: str = "*") -> None:
        """Mounts an aiohttp handler, such as at `/k8s/clusters/{name}/{tail:.*}`; it owns request and answer entirely."""
        self._app.router.add_route(method, path, handler)

    def add_document(self, path: str, produce: Document) -> None:
        """Serves a small document, JSON unless its headers say otherwise, to everyone who asks by GET, however often.

        It is for probes, which may come from an address that is not theirs alone, so it must cost nothing.
        """

        async def handle(_request: web.Request) -> web.StreamResponse:
            status, headers, body = await produce()
            more = dict(headers)
            return _response(Answer(status, more.pop("Content-Type", JSON), body, more))

        self._app.router.add_get(path, handle)

    def add_fixed(self, path: str, fixed: Fixed) -> None:
        """Serves a document that never changes to everyone who asks by GET or HEAD, as often as the address may."""

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                self._api.uncalled(request.remote or "")
            except Fault as fault:
                status, headers, body = errors.answer(fault)
                return _response(Answer(status, JSON, body, headers))
            return _response(fixed.answer({name.lower(): value for name, value in request.headers.items()}))

        self._app.router.add_get(path, handle)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listens and returns the port; without TLS for tests on loopback only. OSError when it is taken."""
        self._app.router.add_route("*", r"/{path:[\s\S]*}", self._handle)  # line breaks too: what is wrong, we say ourselves
        self._runner = web.AppRunner(
            self._app, handler_cancellation=True, access_log=None, keepalive_timeout=_KEEP_ALIVE, max_line_size=_MAX_LINE,
            max_field_size=_MAX_FIELD, max_headers=_MAX_HEADERS, auto_decompress=False, shutdown_timeout=5.0, lingering_time=_LINGER,
        )  # fmt: skip
        await self._runner.setup()
        await Site(self._runner, host, port, tls=tls, guard=self._guard).start()
        return int(self._runner.addresses[0][1])

    async def drain(self) -> None:
        """Takes no new connections, lets answers under way end for 5 s, then closes."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = _Body(request, self._body_seconds) if request.body_exists else None
        answer = await self._api.answer(_given(request, body))
        if answer.items is None:
            return _response(answer)
        return await (_raw_stream if answer.raw else _stream)(request, answer)


async def _with_id(_request: web.Request, response: web.StreamResponse) -> None:
    """What no API call made, such as a document or an answer under `/k8s`, has an id too."""
    if errors.REQUEST_ID not in response.headers:
        response.headers[errors.REQUEST_ID] = new_id().hex


def _behind(guard: Guard) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Puts the client's address in the place of a trusted proxy's, for every route."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = request.remote or ""
        client = guard.proxies.client(peer, ",".join(request.headers.getall("X-Forwarded-For", [])))
        return await handler(request if client == peer else request.clone(remote=client))

    return middleware


class _Body:
    """A request's body on the wire."""

    def __init__(self, request: web.Request, seconds: float) -> None:
        self._request, self._seconds = request, seconds

    async def whole(self, most: int) -> bytes:
        self._refuse_compressed()
        if (self._request.content_length or 0) > most:
            raise _too_large(most)
        found: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in self._request.content.iter_any():
                    size += len(piece)
                    if size > most:
                        raise _too_large(most)
                    found.append(piece)
        except TimeoutError as error:
            raise self._late() from error
        return b"".join(found)

    async def pieces(self) -> AsyncIterator[bytes]:
        self._refuse_compressed()
        content = self._request.content
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    piece = await content.readany()
            except TimeoutError as error:
                raise self._late() from error
            if not piece:
                return
            yield piece

    def _refuse_compressed(self) -> None:
        if self._request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise HttpFault.of(415, "UNSUPPORTED_MEDIA_TYPE", "the body must not be compressed")

    def _late(self) -> HttpFault:
        return HttpFault.of(408, "BODY_TOO_SLOW", f"the body did not come within {self._seconds:g} s", {"Connection": "close"})


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body has more than {most} bytes, which is all that is taken here", {"limit": str(most)})


def _given(request: web.Request, body: _Body | None) -> Request:
    headers: dict[str, str] = {}
    doubled: set[str] = set()
    for name, value in request.headers.items():
        lower = name.lower()
        if lower in headers:
            doubled.add(lower)
        headers[lower] = value
    return Request(request.method, request.raw_path, headers, body, request.remote or "", frozenset(doubled))


def _response(answer: Answer) -> web.Response:
    headers = _HEADERS | answer.headers
    if answer.content_type:
        headers["Content-Type"] = answer.content_type
    kind = web.Response if len(answer.body) < _LARGE else _Large
    response = kind(status=answer.status, body=answer.body, headers=headers)
    if answer.headers.get("Connection") == "close":
        response.force_close()
    return response


class _Large(web.Response):
    """Its head goes out alone: aiohttp would copy head and body into one."""

    _send_headers_immediately = True


async def _stream(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Streams; a fault before the first item is an error answer of its own. aiohttp cancels us when the client goes."""
    assert answer.items is not None
    assert answer.method is not None
    assert answer.binding is not None
    form = streams.SSE_FORM if answer.content_type == SSE else streams.NDJSON_FORM
    response = web.StreamResponse()
    made = answer.method.response_class, form, answer.binding.encode
    async with aclosing(streams.chunks(answer.items, *made, request_id=answer.headers[errors.REQUEST_ID])) as running:
        try:
            await anext(running)
        except Fault as fault:
            return _refused(answer, fault)
        response.headers.update(_HEADERS | answer.headers | {"Content-Type": answer.content_type})
        await response.prepare(request)  # sends the headers now, not with the first event
        async for chunk in running:
            if chunk:
                await response.write(chunk)
    await response.write_eof()
    return response


async def _raw_stream(request: web.Request, answer: Answer) -> web.StreamResponse:
    """The pieces of a google.api.HttpBody as they come: the next one is asked for when the last one has left for the client."""
    assert answer.items is not None
    assert answer.method is not None
    response: web.StreamResponse | None = None
    async with aclosing(answer.items) as items:
        try:
            async for item in items:
                if item is None:
                    continue
                part: Any = answer.method.response_class.FromString(item) if isinstance(item, bytes) else item
                if response is None:
                    response = await _begun(request, answer, part.content_type)
                await response.write(part.data)
        except Fault as fault:
            if response is None:
                return _refused(answer, fault)
            raise ConnectionResetError("the body ended in a fault; the client must not take it for whole") from fault
    if response is None:
        response = await _begun(request, answer, "")
    await response.write_eof()
    return response


async def _begun(request: web.Request, answer: Answer, content_type: str) -> web.StreamResponse:
    response = web.StreamResponse()
    response.headers.update(_HEADERS | answer.headers | {"Content-Type": content_type or answer.content_type})
    await response.prepare(request)
    return response


def _refused(answer: Answer, fault: Fault) -> web.Response:
    status, headers, body = errors.answer(fault, answer.headers[errors.REQUEST_ID])
    return _response(Answer(status, JSON, body, answer.headers | headers))
