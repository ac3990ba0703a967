"""A peer that means harm: floods, half messages, clocks from nowhere, and reading nothing."""

from __future__ import annotations

import asyncio

import pytest

from libs.tunnel import Ended, Limits, Lost, Mux, Reset, Stream
from libs.tunnel.frames import CREDIT, DATA, END, EOM, HEADER, OPEN, PING, PONG, RESET, TIMES, U32
from libs.tunnel.mux import Accept
from libs.tunnel.tests.pipe import Pipe, pair, refuse, say


def attacked(accept: Accept, limits: Limits | None = None) -> Mux:
    """An end whose peer says what a test makes it say, after its greeting."""
    carrier = Pipe(lambda: 1 << 20)
    mux = carrier.mux = Mux(carrier, odd=False, accept=accept, limits=limits)
    say(mux, HEADER.pack(DATA, EOM, 0, 2) + b"hi")
    return mux


def opening(number: int, flags: int = 0, first: bytes = b"") -> bytes:
    """OPEN."""
    return HEADER.pack(OPEN, flags, number, 4 + len(first)) + U32.pack(0) + first


def breaking(number: int) -> bytes:
    """RESET."""
    return HEADER.pack(RESET, 0, number, 4) + U32.pack(Reset.CANCELLED)


async def test_streams_opened_and_reset_at_once_are_bounded_too() -> None:
    """Rapid reset: what a broken-off stream still does counts, so no more work than `streams` is ever under way."""
    at_once = most = 0
    over = asyncio.Event()

    async def slow_to_end(stream: Stream, header: bytes) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            await over.wait()
        finally:
            await asyncio.shield(over.wait())  # as one that rolls back
            at_once -= 1

    mux = attacked(slow_to_end, Limits(streams=50))
    for turn in range(20):
        numbers = range(1 + 200 * turn, 201 + 200 * turn, 2)
        say(mux, b"".join(opening(n) for n in numbers))
        await asyncio.sleep(0)
        say(mux, b"".join(breaking(n) for n in numbers))
        await asyncio.sleep(0)
    assert most <= 50
    assert len(mux._tasks) <= 50
    over.set()
    mux.abort("done")
    await mux.closed()


async def test_messages_that_never_end_are_bounded_together() -> None:
    """Many calls, each nearly a whole message: the streams over the sum are refused, the tunnel and small calls live."""

    async def whole(stream: Stream, header: bytes) -> None:
        message = await stream.receive()
        await stream.send(message or b"", end=True)

    a, b = pair(refuse, whole, Limits(partial=1 << 20))
    streams = [a.open(b"") for _ in range(20)]
    ended = await asyncio.gather(*(s.write(bytes(200_000)) for s in streams), return_exceptions=True)
    async with asyncio.timeout(10):
        while sum(s.error is not None for s in streams) < 14:
            await asyncio.sleep(0)
    assert all(isinstance(e, Ended) and e.code is Reset.TOO_LARGE for e in ended if e is not None)
    assert 0 < b._partial <= 1 << 20
    assert await a.open(b"", b"small", end=True).receive() == b"small"
    for stream in streams:
        stream.reset(Reset.CANCELLED)
    async with asyncio.timeout(10):
        while b.streams or b._tasks:
            await asyncio.sleep(0)
    assert b._partial == 0


@pytest.mark.parametrize("token", [0, 2**64 - 1])
async def test_an_answer_that_nobody_asked_for_measures_nothing(token: int) -> None:
    """Neither windows nor what is told of the cluster follow a round trip that was made up."""
    mux = attacked(refuse)
    say(mux, HEADER.pack(PONG, 0, 0, TIMES.size) + TIMES.pack(token, 5))
    assert (mux.alive, mux.pings.rtt, mux.pings.peer_ahead_millis) == (True, 0.0, 0)
    mux.abort("done")


@pytest.mark.parametrize("millis", [-(2**63), 2**63 - 1])
async def test_a_clock_from_nowhere_stays_a_time(millis: int) -> None:
    """Whoever shows or stores how far a cluster's clock is off need not fear its number."""
    mux = attacked(refuse)
    say(mux, HEADER.pack(PONG, 0, 0, TIMES.size) + TIMES.pack(int(mux.loop.time() * 1e9), millis))
    assert abs(mux.pings.peer_ahead_millis) == 50 * 365 * 86_400_000
    mux.abort("done")


async def test_a_peer_that_talks_and_never_reads_is_given_up() -> None:
    """It is never silent, but answers no ping: its streams would hang for ever."""
    mux = attacked(refuse, Limits(ping_every=0.05, ping_timeout=0.05))

    async def talk() -> None:
        while mux.alive:
            say(mux, HEADER.pack(PING, 0, 0, TIMES.size) + TIMES.pack(1, 1))
            await asyncio.sleep(0.01)

    async with asyncio.timeout(20):
        await talk()
        await mux.closed()


async def test_a_flood_of_pings_is_bounded() -> None:
    """Answers that the peer does not take end the connection before they cost much."""
    mux = attacked(refuse, Limits(control=1 << 20))
    mux.pause()
    for _ in range(100):
        say(mux, 1000 * (HEADER.pack(PING, 0, 0, TIMES.size) + TIMES.pack(1, 1)))
        if not mux.alive:
            break
    assert not mux.alive
    assert not mux._control


async def test_credit_without_end_makes_nobody_send_more_than_waits() -> None:
    """A window that the peer says is endless changes nothing for what is queued here."""
    over = asyncio.Event()

    async def endless(stream: Stream, header: bytes) -> None:
        while not over.is_set():
            await stream.write(bytes(32 * 1024))

    mux = attacked(endless)
    mux.pause()
    say(mux, opening(1, END) + 1000 * (HEADER.pack(CREDIT, 0, 1, 4) + U32.pack(2**32 - 1)))
    for _ in range(20):
        await asyncio.sleep(0)
    stream = mux.stream(1)
    assert stream is not None
    assert stream._out_size <= 2 * mux.limits.chunk
    mux.abort("done")
    await mux.closed()


async def test_used_up_numbers_end_the_tunnel() -> None:
    """Its agent dials again and all goes on, instead of a tunnel that stands and refuses everything."""
    mux = attacked(refuse)
    mux._next_id = 2**32 - 2
    mux.open(b"")
    with pytest.raises(Lost):
        mux.open(b"")
    assert not mux.alive
