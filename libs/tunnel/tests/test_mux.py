"""The multiplexer: ends, credit, order, limits and what breaks it; what its users rely on over every carrier, the rest in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from libs.tunnel import Ended, Limits, Lost, Mux, Reset, Stream, TooLarge
from libs.tunnel.frames import COST, CREDIT, DATA, END, EOM, HEADER, OPEN, U32
from libs.tunnel.tests.carriers import CARRIERS, joined
from libs.tunnel.tests.pipe import Pipe, Serve, echo, pair, refuse, say

Joins = Callable[[Serve, Serve], Awaitable[tuple[Mux, Mux]]]


@pytest.fixture(params=("memory", *CARRIERS))
async def ends(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Joins]:
    """Makes two greeted ends, by each carrier in turn."""
    async with AsyncExitStack() as stack:

        async def made(hub: Serve, agent: Serve) -> tuple[Mux, Mux]:
            if request.param == "memory":
                return pair(hub, agent)
            return await stack.enter_async_context(joined(request.param, tmp_path, hub, agent))

        yield made


async def test_a_unary_exchange_is_two_frames() -> None:
    """A small request rides inside OPEN, a small last reply in one frame, so a call costs a write each way."""
    a, b = pair(refuse, echo_once)
    await b.greeted(1)
    carrier = a._carrier
    assert isinstance(carrier, Pipe)
    before = carrier.written
    stream = a.open(b"head", b"ping", end=True)
    assert await stream.receive() == b"ping"
    assert await stream.receive() is None
    assert carrier.written - before == HEADER.size + U32.size + len(b"headping")
    assert (a.streams, b.streams) == (0, 0)


async def echo_once(stream: Stream, header: bytes) -> None:
    message = await stream.receive()
    assert message is not None
    await stream.send(message, end=True)


async def test_half_close_leaves_the_other_direction_open(ends: Joins) -> None:
    """A megabyte goes up, the upload ends, and the answer still comes back."""

    async def count(stream: Stream, header: bytes) -> None:
        size = 0
        while piece := await stream.read():
            size += len(piece)
        await stream.send(str(size).encode(), end=True)

    a, _ = await ends(refuse, count)
    stream = a.open(b"")
    await stream.write(b"x" * 1_000_000)
    stream.end()
    assert await stream.receive() == b"1000000"
    assert a.streams == 0


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 15 << 20, 16 << 20])
async def test_messages_up_to_the_limit_arrive_whole(ends: Joins, size: int) -> None:
    """Messages larger than the window pass, because credit comes back as they are read."""
    a, _ = await ends(refuse, echo)
    stream = a.open(b"")
    message = random.Random(size).randbytes(size)
    sending = asyncio.ensure_future(stream.send(message, end=True))
    assert await stream.receive() == message
    await sending


async def test_a_message_over_the_limit_breaks_its_stream_only() -> None:
    """17 MiB are refused at both ends; the tunnel lives on."""
    roomy = Limits(message=64 << 20)
    left, right = Pipe(lambda: 1 << 20), Pipe(lambda: 1 << 20)
    left.other, right.other = right, left
    a = left.mux = Mux(left, odd=True, accept=refuse, limits=roomy)
    b = right.mux = Mux(right, odd=False, accept=echo)
    a.hello(b"")
    b.hello(b"")
    stream = a.open(b"")
    with pytest.raises(Ended) as refused:
        await stream.send(bytes(17 << 20))
    assert refused.value.code is Reset.TOO_LARGE
    with pytest.raises(TooLarge):
        await b.open(b"").send(bytes(17 << 20))
    again = a.open(b"", b"still here", end=True)
    assert await again.receive() == b"still here"


async def test_a_stuck_reader_holds_its_window_and_the_sender_waits(ends: Joins) -> None:
    """Whoever does not read costs one window; the sender of that stream waits, calls beside it go on."""
    stuck: list[Stream] = []

    async def serve(stream: Stream, header: bytes) -> None:
        if header == b"stuck":
            stuck.append(stream)
            await asyncio.Event().wait()
        await echo(stream, header)

    a, b = await ends(refuse, serve)
    flood = a.open(b"stuck")
    sending = asyncio.ensure_future(flood.write(bytes(8 << 20)))
    for _ in range(50):
        call = a.open(b"", b"x", end=True)
        assert await call.receive() == b"x"
    assert not sending.done()
    assert await _eventually(lambda: stuck[0].held > 200_000)
    assert not sending.done()
    assert stuck[0].held <= Limits().window
    assert flood._out_size <= 2 * Limits().chunk
    flood.reset(Reset.CANCELLED)
    with pytest.raises(Ended):
        await sending
    assert await _eventually(lambda: b.streams == 0)


async def test_cancelled_streams_leave_no_trace(ends: Joins) -> None:
    """Fifty cancels in mid-stream free both tables and end the tasks that served them."""
    ended = 0

    async def endless(stream: Stream, header: bytes) -> None:
        nonlocal ended
        try:
            while True:
                await stream.write(bytes(10_000))
        finally:
            ended += 1

    a, b = await ends(refuse, endless)
    streams = [a.open(b"") for _ in range(50)]
    for stream in streams:
        assert await stream.read()
        stream.reset(Reset.CANCELLED, "not wanted")
        with pytest.raises(Ended):
            await stream.read()
    assert await _eventually(lambda: ended == 50 and not b._tasks)
    assert (a.streams, b.streams) == (0, 0)


async def test_an_early_answer_stops_the_upload(ends: Joins) -> None:
    """A server that answers before it read everything has its answer read, and the sender learns that no more is wanted."""

    async def early(stream: Stream, header: bytes) -> None:
        await stream.send(b"too much", end=True)

    a, b = await ends(refuse, early)
    stream = a.open(b"")
    with pytest.raises(Ended) as stopped:
        await stream.write(bytes(4 << 20))
    assert stopped.value.code is Reset.DONE
    assert await stream.receive() == b"too much"
    assert await stream.receive() is None
    assert await _eventually(lambda: (a.streams, b.streams) == (0, 0))


async def test_a_trailer_tells_how_it_ended(ends: Joins) -> None:
    """The last message can say how the stream ended instead of being part of it."""

    async def fails(stream: Stream, header: bytes) -> None:
        await stream.send(b"one")
        await stream.send(b"why", trailer=True)

    a, _ = await ends(refuse, fails)
    stream = a.open(b"", end=True)
    assert [await stream.receive(), await stream.receive(), stream.trailer] == [b"one", None, b"why"]


async def test_a_broken_connection_fails_every_reader_at_once(ends: Joins) -> None:
    """Twenty readers of a tunnel that breaks fail without waiting for any timeout."""

    async def silent(stream: Stream, header: bytes) -> None:
        await asyncio.Event().wait()

    a, b = await ends(refuse, silent)
    readers = [asyncio.ensure_future(a.open(b"").receive()) for _ in range(20)]
    await _eventually(lambda: b.streams == 20)
    a.abort("test")
    results = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 1)
    assert all(isinstance(r, Lost) for r in results)
    await asyncio.wait_for(b.closed(), 1)
    with pytest.raises(Lost):
        a.open(b"")


async def test_a_handler_that_crashes_breaks_its_stream_only() -> None:
    """A mistake in a servicer resets its stream with INTERNAL and says nothing about the cause."""

    async def crash(stream: Stream, header: bytes) -> None:
        raise RuntimeError("secret detail")

    a, _ = pair(refuse, crash)
    with pytest.raises(Ended) as broken:
        await a.open(b"", end=True).receive()
    assert broken.value.code is Reset.INTERNAL
    assert "secret" not in str(broken.value)
    assert a.alive


async def test_an_answer_over_the_limit_is_told_at_once(ends: Joins) -> None:
    """A servicer whose answer is too large breaks its stream, so that the caller does not wait for ever."""

    async def huge(stream: Stream, header: bytes) -> None:
        await stream.send(bytes(17 << 20), end=True)

    a, b = await ends(refuse, huge)
    with pytest.raises(Ended) as refused:
        await asyncio.wait_for(a.open(b"", end=True).receive(), 2)
    assert refused.value.code is Reset.TOO_LARGE
    assert (a.streams, b.streams) == (0, 0)


async def test_too_many_streams_are_refused() -> None:
    """The peer's streams are bounded, and so are ours."""

    async def silent(stream: Stream, header: bytes) -> None:
        await asyncio.Event().wait()

    a, b = pair(refuse, silent, Limits(streams=3))
    kept = [a.open(b"") for _ in range(3)]
    with pytest.raises(Ended):
        a.open(b"")
    a.limits, b.limits = Limits(streams=10), Limits(streams=3)
    with pytest.raises(Ended) as refused:
        await a.open(b"").receive()
    assert refused.value.code is Reset.REFUSED
    kept[0].reset(Reset.CANCELLED)
    assert await _eventually(lambda: b.streams == 2)


async def test_silence_ends_the_tunnel() -> None:
    """A peer that answers no ping within the limit is given up."""
    carrier = Pipe(lambda: 1)
    mux = carrier.mux = Mux(carrier, odd=True, accept=refuse, limits=Limits(ping_every=0.05, ping_timeout=0.1))
    await asyncio.wait_for(mux.closed(), 5)
    assert not mux.alive


async def test_a_silent_peer_is_given_up_at_the_limit_not_a_ping_later() -> None:
    """Between two pings too."""
    carrier = Pipe(lambda: 1)
    mux = carrier.mux = Mux(carrier, odd=True, accept=refuse, limits=Limits(ping_every=2, ping_timeout=0.2))
    await asyncio.wait_for(mux.closed(), 3.5)
    assert not mux.alive


async def test_pings_measure_the_round_trip_and_the_peers_clock() -> None:
    """The peer's clock is known to within the round trip, so that times can be judged by it."""
    a, b = Pipe(lambda: 1 << 20), Pipe(lambda: 1 << 20)
    a.other, b.other = b, a
    ahead = 3_600_000
    a.mux = Mux(a, odd=True, accept=refuse, now_millis=lambda: 1_000_000 + ahead)
    b.mux = Mux(b, odd=False, accept=refuse, now_millis=lambda: 1_000_000)
    a.mux.hello(b"")
    b.mux.hello(b"")
    mux = b.mux
    assert await _eventually(lambda: mux.pings.peer_ahead_millis)  # a round trip may be too short for the clock
    assert abs(mux.pings.peer_now_millis() - 1_000_000 - ahead) < 1000


HELLO = HEADER.pack(DATA, EOM, 0, 2) + b"hi"
BROKEN = {
    "data for a stream never opened": HEADER.pack(DATA, 0, 7, 1) + b"x",
    "our own number, never opened": HEADER.pack(DATA, 0, 2, 1) + b"x",
    "unknown type": HEADER.pack(99, 0, 1, 0),
    "frame over the limit": HEADER.pack(DATA, 0, 1, (1 << 20) + 1),
    "credit of a wrong size": HEADER.pack(OPEN, 0, 1, 4) + U32.pack(0) + HEADER.pack(CREDIT, 0, 1, 3) + b"abc",
    "open of our parity": HEADER.pack(OPEN, 0, 2, 4) + U32.pack(0),
    "open twice": 2 * (HEADER.pack(OPEN, 0, 1, 4) + U32.pack(0)),
    "header longer than the frame": HEADER.pack(OPEN, 0, 1, 4) + U32.pack(1),
    "data after the end": HEADER.pack(OPEN, END, 1, 4) + U32.pack(0) + HEADER.pack(DATA, 0, 1, 1) + b"x",
    "second greeting": HEADER.pack(DATA, EOM, 0, 1) + b"x",
    "more than the window": HEADER.pack(OPEN, 0, 1, 4) + U32.pack(0) + 9 * (HEADER.pack(DATA, 0, 1, 32768) + bytes(32768)),
    "empty frames beyond the window": HEADER.pack(OPEN, 0, 1, 4) + U32.pack(0) + (Limits().window // COST + 1) * HEADER.pack(DATA, 0, 1, 0),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_whoever_breaks_the_protocol_is_dropped(what: str) -> None:
    """Each breach ends the connection instead of being guessed at."""

    async def silent(stream: Stream, header: bytes) -> None:
        await asyncio.Event().wait()

    carrier = Pipe(lambda: 1)
    mux = carrier.mux = Mux(carrier, odd=False, accept=silent)
    for piece in (HELLO, BROKEN[what]):
        assert mux.alive
        say(mux, piece)
    assert not mux.alive
    await asyncio.wait_for(mux.closed(), 1)


async def test_a_stream_before_the_greeting_is_a_breach() -> None:
    """Nothing is served to a peer that has not said who it is."""
    carrier = Pipe(lambda: 1)
    mux = carrier.mux = Mux(carrier, odd=False, accept=refuse)
    say(mux, HEADER.pack(OPEN, 0, 1, 4) + U32.pack(0))
    assert not mux.alive


async def _eventually(check: object, within: float = 5.0) -> bool:
    assert callable(check)
    async with asyncio.timeout(within):
        while not check():
            await asyncio.sleep(0)
    return True
