"""Kubernetes requests from the hub, sent to this cluster's API server as the user whose grant they came under.

The agent writes the request itself: method and canonical path, the headers that may travel, its own credential, and
the user last. It follows no redirect, keeps no cookie, decodes nothing, and sends its credential to one address only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from libs import log
from libs.faults import Unavailable
from libs.kube import Connection, Principal
from libs.log import trace
from libs.tunnel import Reset, Stream, StreamEnded, calls
from libs.tunnel.kubernetes import Request, may_be_sent, reply_headers
from services.agent import upgrade
from services.agent.reply import head, send_head

_CONNECT_SECONDS = 10.0
_CHUNK = 64 * 1024
_UNAUTHORIZED = 401
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_log = log.get("services.agent.proxy")


class UpstreamAway(Unavailable):
    """The API server could not be reached, or did not speak HTTP."""

    reason = "API_SERVER_AWAY"


class Proxy:
    """Sends requests to one API server.

    Args:
        connection: where it is and how the agent proves itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_NOT_ADDED,
            read_bufsize=_CHUNK,
        )

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def serve(self, stream: Stream, request: Request, *, has_body: bool, principal: Principal) -> None:
        """Answers a request on its stream."""
        attributes = {"http.request.method": request.method, "kubegems.verb": request.target().action}
        with trace.span("kubernetes.upstream", kind=trace.SpanKind.CLIENT, attributes=attributes) as span:
            try:
                if request.upgrade:
                    headers = await self._headers(request, principal)
                    status = await upgrade.serve(stream, request, headers, self._connection)
                else:
                    status = await self._plain(stream, request, principal, has_body=has_body)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                _log.warning("proxy.upstream_failed", cause=type(error).__name__, verb=request.target().action)
                trace.fail(span, type(error).__name__)
                await _broken(stream)
                return
            span.set_attribute("http.response.status_code", status)

    async def _plain(self, stream: Stream, request: Request, principal: Principal, *, has_body: bool) -> int:
        response = await self._send(stream, request, principal, has_body=has_body)
        if response.status == _UNAUTHORIZED and not has_body and await self._connection.reload():
            response.close()
            response = await self._send(stream, request, principal, has_body=has_body)
        try:
            await send_head(stream, head(response.status, reply_headers(response.raw_headers)))
            async for chunk in response.content.iter_chunked(_CHUNK):
                await stream.write(chunk)
            stream.end()
        finally:
            response.close() if not response.content.at_eof() else response.release()
        return response.status

    async def _send(self, stream: Stream, request: Request, principal: Principal, *, has_body: bool) -> aiohttp.ClientResponse:
        headers = await self._headers(request, principal)
        query = f"?{request.query}" if request.query else ""
        length = headers.get("content-length")
        body = _body(stream, int(length) if length and length.isdecimal() else None) if has_body else None
        if body is None:
            headers.popall("content-length", None)
        return await self._session.request(
            request.method, URL(self._connection.server + request.target().path + query, encoded=True), headers=headers, data=body,
            allow_redirects=False, ssl=self._connection.tls or True, server_hostname=self._connection.server_hostname,
        )  # fmt: skip

    async def _headers(self, request: Request, principal: Principal) -> CIMultiDict[str]:
        """What the API server gets; the user comes last, so that nothing before it can take its place."""
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in request.headers:
            if may_be_sent(name, value):
                headers.add(name, value.decode("latin-1"))
        if traceparent := trace.traceparent():
            headers["traceparent"] = traceparent
        if authorization := await self._connection.authorization():
            headers["Authorization"] = authorization
        for name, text in principal.headers():
            headers.add(name, text)
        return headers


async def _body(stream: Stream, length: int | None) -> AsyncIterator[bytes]:
    """The request's body; exactly as long as its header says, so that nothing of it can pass for another request."""
    size = 0
    while chunk := await stream.read():
        size += len(chunk)
        if length is not None and size > length:
            break
        yield chunk
    if length is not None and size != length:
        raise aiohttp.ClientPayloadError("the body is not as long as its header says")


async def _broken(stream: Stream) -> None:
    """Says that the API server failed: as a fault before the head, as a broken stream after it."""
    if stream.wrote:
        stream.reset(Reset.UPSTREAM, "the API server broke off")
        return
    try:
        await calls.fail(stream, UpstreamAway("the cluster's API server cannot be reached by its agent; try again"))
    except StreamEnded:
        return
