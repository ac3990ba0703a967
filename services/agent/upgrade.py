"""Requests that are upgraded (exec, attach, port-forward): bytes pass raw only after the API server's own 101.

Any other answer is passed on as what it is and both sides are closed (CVE-2018-1002105).
"""

from __future__ import annotations

import asyncio
import re
from asyncio.sslproto import SSLProtocol

from multidict import CIMultiDict
from yarl import URL

from libs.faults import Unavailable
from libs.kube import Connection
from libs.tunnel import Stream, StreamEnded
from libs.tunnel.kubernetes import Header, Request, reply_headers
from services.agent.reply import head, send_head

_CONNECT_SECONDS = 10.0
_HEAD_SECONDS = 60.0
_MOST_HEAD = 64 * 1024
_MOST_BODY = 1024 * 1024
_CHUNK = 32 * 1024
_SWITCHING = 101
_LEAST_FINAL = 200
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CLOSE_SECONDS = 2.0


class BadAnswer(Unavailable):
    """The API server's answer to an upgrade makes no sense."""

    reason = "BAD_UPGRADE"


async def serve(stream: Stream, request: Request, headers: CIMultiDict[str], connection: Connection) -> int:
    """Asks for the upgrade and serves it to its end; the status that came. Raises OSError or TimeoutError before the head is sent."""
    url = URL(connection.server)
    async with asyncio.timeout(_CONNECT_SECONDS):
        reader, writer = await _dialled(url, connection)
    try:
        writer.write(_head(request, headers, url))
        async with asyncio.timeout(_HEAD_SECONDS):
            status, answer = await _answer(reader)
        if status == _SWITCHING:
            _check_switch(request, answer)
            await send_head(stream, head(status, reply_headers(answer)))
            await _both_ways(stream, reader, writer)
        else:
            async with asyncio.timeout(_HEAD_SECONDS):
                body = await _body(reader, answer)
            await send_head(stream, head(status, _sized(reply_headers(answer), len(body))))
            await stream.write(body)
            stream.end()
        return status
    finally:
        await _close(writer)


async def _dialled(url: URL, connection: Connection) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the API server.

    Its TLS is the standard library's on uvloop too: uvloop's own drops what has come and was not read yet when the other end
    closes without TLS's own goodbye, as API servers do after exec.
    """
    loop, host, port = asyncio.get_running_loop(), url.host or "", url.port or 0
    reader = asyncio.StreamReader(limit=_MOST_HEAD)
    protocol = asyncio.StreamReaderProtocol(reader)
    if connection.tls is None:
        transport: asyncio.WriteTransport = (await loop.create_connection(lambda: protocol, host, port))[0]
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
    shaken: asyncio.Future[None] = loop.create_future()
    tls = SSLProtocol(loop, protocol, connection.tls, shaken, server_hostname=connection.server_hostname or host)
    raw, _ = await loop.create_connection(lambda: tls, host, port)
    try:
        await shaken
    except BaseException:
        raw.abort()
        raise
    return reader, asyncio.StreamWriter(tls._app_transport, protocol, reader, loop)  # noqa: SLF001 -- what `connection_made` was given


def _head(request: Request, headers: CIMultiDict[str], url: URL) -> bytes:
    query = f"?{request.query}" if request.query else ""
    lines = [f"{request.method} {url.raw_path.rstrip('/')}{request.target().path}{query} HTTP/1.1", f"Host: {url.authority}"]
    lines += ["Connection: Upgrade", f"Upgrade: {request.upgrade}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() != "content-length"]
    text = "\r\n".join(lines) + "\r\n\r\n"
    if any(c in line for line in lines for c in "\r\n\0"):
        raise BadAnswer("a header holds a line break")
    return text.encode("latin-1")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers of the final answer, or of a 101; raises BadAnswer."""
    for _ in range(5):
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise BadAnswer("the API server's answer is cut off or too long") from error
        first, *rest = raw[:-4].split(b"\r\n")
        found = _STATUS.fullmatch(first)
        if found is None:
            raise BadAnswer("the API server's answer is no HTTP")
        status = int(found[1])
        if status == _SWITCHING or status >= _LEAST_FINAL:
            return status, [_line(line) for line in rest]
    raise BadAnswer("the API server goes on promising an answer")


def _line(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not _NAME.fullmatch(name):
        raise BadAnswer("the API server's answer has a malformed header")
    return name, value.strip(b" \t")


def _check_switch(request: Request, answer: list[tuple[bytes, bytes]]) -> None:
    """A 101 must switch to what was asked for."""
    found = {name.lower(): value.lower() for name, value in answer}
    tokens = {t.strip() for t in found.get(b"connection", b"").split(b",")}
    if b"upgrade" not in tokens or found.get(b"upgrade") != request.upgrade.lower().encode():
        raise BadAnswer("the API server switched to another protocol")


async def _body(reader: asyncio.StreamReader, answer: list[tuple[bytes, bytes]]) -> bytes:
    """The body of a refusal, cut at 1 MiB."""
    found = {name.lower(): value for name, value in answer}
    if b"chunked" in found.get(b"transfer-encoding", b"").lower():
        return await _chunked(reader)
    length = found.get(b"content-length", b"")
    if length.isdigit():
        return await _upto(reader, min(int(length), _MOST_BODY))
    return await _upto(reader, _MOST_BODY)


async def _upto(reader: asyncio.StreamReader, most: int) -> bytes:
    parts: list[bytes] = []
    left = most
    while left and (part := await reader.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    left = _MOST_BODY
    try:
        while left:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0].strip(), 16)
            if not 0 < size <= left:
                break
            parts.append(await reader.readexactly(size))
            left -= size
            await reader.readexactly(2)
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise BadAnswer("the API server's answer is malformed") from error
    return b"".join(parts)


def _sized(headers: tuple[Header, ...], size: int) -> list[Header]:
    return [(n, v) for n, v in headers if n != "content-length"] + [("content-length", str(size).encode())]


async def _both_ways(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Raw bytes both ways until one side ends; TLS knows no half-close, so that is the end of both."""
    up = asyncio.create_task(_up(stream, writer), name="upgraded stream up")
    down = asyncio.create_task(_down(stream, reader), name="upgraded stream down")
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.wait({up, down})
    stream.end()


async def _up(stream: Stream, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await stream.read():
            writer.write(chunk)
            await writer.drain()
    except (StreamEnded, OSError):
        return


async def _down(stream: Stream, reader: asyncio.StreamReader) -> None:
    try:
        while chunk := await reader.read(_CHUNK):
            await stream.write(chunk)
    except (StreamEnded, OSError):
        return


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
