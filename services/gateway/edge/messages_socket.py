"""`/ws/messages`: live changes over one WebSocket, whose client changes its selectors by sending others.

The token travels in `Authorization`, or, from browsers, as the subprotocol `bearer.kubegems.io.<token>`; never in the
query string. A browser's Origin must be exactly ours or a configured one. The first text frame is a SubscribeRequest as
JSON, every later one an UpdateSubscriptionRequest without `name`; the answers are Events as JSON, one a frame. A frame
`{"error": …}` precedes the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web
from google.protobuf.message import Message

from kubegems.messages.v1 import event_pb2, message_service_pb2
from libs import log
from libs.clock import new_id
from libs.faults import Fault, Invalid, Unauthenticated
from libs.rest import errors
from libs.rest.decode import decode
from libs.rest.encode import to_json
from libs.rpc.batches import each
from libs.rpc.call import Call, Caller, Method
from libs.rpc.pipeline import Pipeline
from libs.rpc.protocols import Limiter

PROTOCOL = "v1.messages.kubegems.io"
BEARER = "bearer.kubegems.io."
_SUBSCRIBE = "/kubegems.messages.v1.MessageService/Subscribe"
_UPDATE = "/kubegems.messages.v1.MessageService/UpdateSubscription"
_MOST_FRAME = 64 * 1024
_FIRST_SECONDS = 10.0
_HEARTBEAT = 15.0
_FORBIDDEN = 403
_log = log.get("services.gateway.edge")
Authenticate = Callable[[Call], Awaitable[Caller]]


class MessagesSocket:
    """Serves the WebSocket form of MessageService.

    Args:
        pipeline: runs the calls, with all its checks, limits and records.
        authenticate: who calls; asked before the upgrade too, so that strangers get a plain 401.
        origins: origins whose pages may connect, such as `https://127.0.0.1:8443`.
        limiter: asked by address before a token is looked at, and told of bad ones, as for every call.
    """

    def __init__(
        self, pipeline: Pipeline, authenticate: Authenticate, origins: Collection[str], limiter: Limiter | None = None
    ) -> None:  # fmt: skip
        self._pipeline, self._limiter = pipeline, limiter
        self._authenticate = authenticate
        self._origins = frozenset(filter(None, (origin(o) for o in origins)))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One connection, from upgrade to end."""
        call = self._call(_SUBSCRIBE, request)
        try:
            await self._admit(request, call)
        except Fault as fault:
            status, headers, body = errors.answer(fault, call.request_id)
            return web.Response(status=status, headers=headers | {"Cache-Control": "no-store"}, body=body, content_type="application/json")
        socket = web.WebSocketResponse(protocols=(PROTOCOL,), heartbeat=_HEARTBEAT, max_msg_size=_MOST_FRAME, compress=False)
        socket.headers[errors.REQUEST_ID] = call.request_id
        await socket.prepare(request)
        try:
            await self._serve(socket, request, call)
        except Fault as fault:
            await _refuse(socket, fault, call.request_id)
        finally:
            await socket.close()
        return socket

    async def _admit(self, request: web.Request, call: Call) -> None:
        if self._limiter is not None:
            self._limiter.address(call)
        found = request.headers.getall("Origin", [])
        if found and (len(found) > 1 or found[0] not in self._origins):
            raise errors.HttpFault.of(_FORBIDDEN, "ORIGIN_REFUSED", "pages of this origin may not connect")
        if request.query_string:
            raise Invalid("no parameters here: the token belongs into a header, the selectors into the first frame")
        try:
            await self._authenticate(call)
        except Unauthenticated:
            if self._limiter is not None:
                self._limiter.failed(call)
            raise

    def _call(self, path: str, request: web.Request) -> Call:
        return Call(
            self._method(path), address=request.remote or "", user_agent=request.headers.get("User-Agent", "")[:256],
            transport="rest", request_id=new_id().hex, traceparent=request.headers.get("traceparent", ""), credential=_token(request),
        )  # fmt: skip

    def _method(self, path: str) -> Method:
        method = self._pipeline.method(path)
        if method is None:
            raise LookupError(f"{path} is not served")
        return method

    async def _serve(self, socket: web.WebSocketResponse, request: web.Request, call: Call) -> None:
        asked = message_service_pb2.SubscribeRequest()
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                _read(await socket.receive(), asked)
        except TimeoutError as error:
            raise Invalid("the first frame, a SubscribeRequest, did not come in time") from error
        except _Gone:
            return
        name: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        sending = asyncio.create_task(self._send(socket, call, asked, name), name="messages socket")
        reading = asyncio.create_task(self._updates(socket, request, name), name="messages socket updates")
        try:
            done, _ = await asyncio.wait({sending, reading}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            name.cancel()
            for task in (sending, reading):
                task.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)

    async def _send(self, socket: web.WebSocketResponse, call: Call, asked: Message, name: asyncio.Future[str]) -> None:
        items: AsyncGenerator[Any, None] = self._pipeline.stream(call, asked)
        async with aclosing(items):
            async for yielded in items:
                for item in each(yielded):
                    event = event_pb2.Event.FromString(item) if isinstance(item, bytes) else item
                    if event.subscription and not name.done():
                        name.set_result(event.subscription)
                    await socket.send_str(to_json(event).decode())

    async def _updates(self, socket: web.WebSocketResponse, request: web.Request, name: asyncio.Future[str]) -> None:
        """Takes other selectors, one after the other, until the client goes."""
        while True:
            update = message_service_pb2.UpdateSubscriptionRequest()
            try:
                _read(await socket.receive(), update)
            except _Gone:
                return
            update.name = await name
            await self._pipeline.unary(self._call(_UPDATE, request), update)


class _Gone(Exception):
    """The client has closed."""


def _read(message: Any, into: Message) -> None:
    """A frame's JSON; raises Invalid, or _Gone at the end."""
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
        raise _Gone
    if message.type != WSMsgType.TEXT:
        raise Invalid("frames are JSON texts")
    decode(message.data.encode(), into)


def _token(request: web.Request) -> str:
    """The bearer token of the header, or of the subprotocol that browsers can set."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if token and kind.lower() == "bearer":
        return token.strip()
    offered = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    return next((p.removeprefix(BEARER) for p in offered if p.startswith(BEARER)), "")


def origin(url: str) -> str:
    """The origin of a URL, as browsers write it; empty for what is none."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    usual = {"http": 80, "https": 443}[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port and parts.port != usual else "")


async def _refuse(socket: web.WebSocketResponse, fault: Fault, request_id: str) -> None:
    code = 3000 if isinstance(fault, Unauthenticated) else 1008 if isinstance(fault, Invalid) else 1011
    with contextlib.suppress(ConnectionError, RuntimeError):
        await socket.send_str(errors.answer(fault, request_id)[2].decode())
        await socket.close(code=code, message=fault.reason.encode()[:100])
