"""A lean HTTP/1.1 load client: ready-made requests, kept connections, one request in flight on each; times in seconds."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

_END = b"0\r\n\r\n"
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Round:
    """What a round took.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: of each request, sorted.
        size: bytes of all answers.
    """

    seconds: float
    latencies: list[float]
    size: int


class _Lane(asyncio.Protocol):
    """One connection; asks again as soon as it has its answer."""

    def __init__(self, request: bytes, times: int, ended: asyncio.Future[None]) -> None:
        self._request, self._left, self._ended = request, times, ended
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self._head = bytearray()
        self._missing = -1  # bytes of the body still to come; -1: the head is not there yet; -2: chunked
        self._tail = b""
        self.latencies: list[float] = []
        self.size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def begin(self) -> None:
        assert self._transport is not None
        self._began = time.perf_counter()
        self._head.clear()
        self._missing, self._tail = -1, b""
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if self._missing == -1:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = bytes(self._head[end + 4 :])
            if not self._read_head(bytes(self._head[:end]).lower()):
                return
        if self._missing >= 0:
            self._missing -= len(data)
            if self._missing == 0:
                self._answered()
        else:
            self._tail = (self._tail + data)[-len(_END) :]
            if self._tail == _END:
                self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(exc or ConnectionError("the server hung up"))

    def _read_head(self, head: bytes) -> bool:
        if not head.startswith(b"http/1.1 200"):
            if not self._ended.done():
                self._ended.set_exception(RuntimeError(head[:200].decode()))
            return False
        _, found, rest = head.partition(b"\r\ncontent-length:")
        self._missing = int(rest.split(b"\r\n", 1)[0]) if found else -2
        return True

    def _answered(self) -> None:
        self.latencies.append(time.perf_counter() - self._began)
        self._left -= 1
        if self._left:
            self.begin()
        elif not self._ended.done():
            self._ended.set_result(None)


async def run(port: int, requests: Sequence[bytes], *, lanes: int, times: int, tls: ssl.SSLContext | None = None) -> Round:
    """Sends each of `lanes` connections' request `times` times; RuntimeError for any answer but 200."""
    loop = asyncio.get_running_loop()
    made: list[tuple[asyncio.Transport, _Lane, asyncio.Future[None]]] = []
    for index in range(lanes):
        ended: asyncio.Future[None] = loop.create_future()
        lane = _Lane(requests[index % len(requests)], times, ended)
        host = "localhost" if tls is not None else None
        transport, _ = await loop.create_connection(lambda lane=lane: lane, "127.0.0.1", port, ssl=tls, server_hostname=host)
        made.append((transport, lane, ended))
    began = time.perf_counter()
    for _, lane, _ in made:
        lane.begin()
    async with asyncio.timeout(_SECONDS):
        await asyncio.gather(*(ended for _, _, ended in made))
    seconds = time.perf_counter() - began
    for transport, _, _ in made:
        transport.close()
    return Round(seconds, sorted(t for _, lane, _ in made for t in lane.latencies), sum(lane.size for _, lane, _ in made))


def get(path: str, token: str, accept: str = "application/json") -> bytes:
    """A GET as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def patch(path: str, token: str, body: bytes) -> bytes:
    """A PATCH as bytes."""
    head = f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Authorization: Bearer {token}\r\n\r\n".encode() + body
