"""A thousand idle streams, and too many of one caller."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.abuse.conftest import STREAMS_PER_CALLER, Edge
from tests.kit.eventually import timescale

STREAMS = 1000
_KIB_PER_STREAM = 800  # server and client are both in this process, and each end of TLS holds a buffer of 256 KiB in asyncio
_SUBSCRIBE = "/api/v1/messages:subscribe"


async def _users(edge: Edge, count: int) -> list[str]:
    """Access tokens of new users."""
    tokens = []
    for number in range(count):
        name, password = f"idle{number}", "long enough for them"
        await edge.admin.post("/users", {"userId": name, "user": {"displayName": name}, "initialPassword": password})
        tokens.append((await edge.gateway.nobody.sign_in(name, password)).token)
    return tokens


def _rss() -> int:
    """KiB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


async def _opened(edge: Edge, token: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await edge.open()
    writer.write(edge.get(_SUBSCRIBE, b"Accept: text/event-stream", token=token))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], head
    await reader.readuntil(b"\n\n")  # its first event is there: the stream is open all the way
    return reader, writer


@pytest.mark.timeout(110)
async def test_a_thousand_idle_streams(edge: Edge) -> None:
    """They cost a bounded amount of memory each, others are answered as before, and their end leaves nothing."""
    tokens = await _users(edge, STREAMS // STREAMS_PER_CALLER)
    await _opened(edge, tokens[0])
    gc.collect()
    before, held = _rss(), []
    gate = asyncio.Semaphore(50)

    async def one(token: str) -> None:
        async with gate:
            held.append(await _opened(edge, token))

    await asyncio.gather(*(one(tokens[n % len(tokens)]) for n in range(STREAMS - len(tokens))))
    per_stream = (_rss() - before) / len(held)
    assert edge.bus.open >= len(held)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        assert (await edge.admin.call("GET", "/tenants")).status == 200
        times.append(time.perf_counter() - start)
    slowest = sorted(times)[-3]
    print(f"{len(held)} idle streams: {per_stream:.0f} KiB each, a GET beside them takes {sorted(times)[25] * 1000:.1f} ms")
    assert per_stream < _KIB_PER_STREAM
    assert slowest < 2 * timescale()
    for _, writer in held:
        writer.transport.abort()
    async with asyncio.timeout(40 * timescale()):
        while edge.bus.open > 1:
            await asyncio.sleep(0.05)


async def test_streams_of_one_caller_are_bounded(edge: Edge) -> None:
    """One more than a caller may have is refused with 429, the number and when to come back; another caller is not touched."""
    held: list[Any] = []
    reply = None
    try:
        for _ in range(STREAMS_PER_CALLER):
            held.append(await _opened(edge, edge.admin.token))
        reply = await edge.send(edge.get(_SUBSCRIBE, b"Accept: text/event-stream"))
    finally:
        for _, writer in held:
            writer.close()
    assert (reply.status, reply.reason) == (429, "TOO_MANY_STREAMS")
    assert f"{STREAMS_PER_CALLER} open streams" in reply.body["error"]["message"]
    assert b"Retry-After: 5" in reply.headers
    await edge.alive()
