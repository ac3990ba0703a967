"""Who goes first: control, then what is interactive, then bulk; and how far a window grows."""

from __future__ import annotations

import asyncio

import pytest

from libs.tunnel import Ended, Limits, Mux, Reset, Stream
from libs.tunnel.tests.pipe import echo, pair, refuse


async def test_a_key_press_passes_a_hundred_downloads() -> None:
    """What is interactive is in the next write, beside bulk, and not after the turn of each stream of it."""
    served: dict[bytes, Stream] = {}

    async def serve(stream: Stream, header: bytes) -> None:
        served[header] = stream
        while header != b"keys":
            await stream.write(bytes(32 * 1024))
        await asyncio.Event().wait()

    a, b = pair(refuse, serve)
    await asyncio.gather(a.greeted(5), b.greeted(5))
    b.pause()
    for number in range(100):
        a.open(b"%d" % number)
    a.open(b"keys")
    while len(served) < 101 or len(b._ready) < 100:
        await asyncio.sleep(0)
    for _ in range(3):
        await served[b"keys"].send(b"key")
        parts = b._pull()
        assert b"key" in parts
        assert sum(len(part) for part in parts) > b.limits.quantum // 2
    a.abort("done")


async def test_little_messages_without_end_do_not_starve_bulk() -> None:
    """Streams that always have a little to send take half of a write at most."""

    async def serve(stream: Stream, header: bytes) -> None:
        while True:
            if header == b"bulk":
                await stream.write(bytes(32 * 1024))
            else:
                await stream.send(bytes(4000))
                await asyncio.sleep(0)

    a, _ = pair(refuse, serve)
    bulk, count = a.open(b"bulk", end=True), 0

    async def events() -> None:
        stream = a.open(b"events", end=True)
        while await stream.receive():
            pass

    watches = [asyncio.create_task(events()) for _ in range(64)]
    async with asyncio.timeout(30):
        while count < 4 << 20:
            count += len(await bulk.read())
    a.abort("done")
    await asyncio.gather(*watches, return_exceptions=True)


async def test_our_own_load_on_a_standing_link_is_refused_and_the_tunnel_lives() -> None:
    """Calls opened while the peer takes nothing end in a clear refusal before the control lane is full; later ones are served."""
    a, b = pair(refuse, echo)
    await asyncio.gather(a.greeted(5), b.greeted(5))
    a.pause()
    opened: list[Stream] = []
    for _ in range(400):
        opened.append(a.open(b"", bytes(8192), end=True))
    with pytest.raises(Ended, match="takes too little"):
        [a.open(b"", bytes(8192), end=True) for _ in range(2000)]
    assert a.alive
    a.resume()
    async with asyncio.timeout(30):
        assert len(await opened[-1].receive() or b"") == 8192
    assert a.alive


async def test_answers_on_a_standing_link_wait_with_the_bulk() -> None:
    """Thousands of small answers do not fill the control lane of an end that cannot send."""

    async def answer(stream: Stream, header: bytes) -> None:
        await stream.send(bytes(4000), end=True)

    limits = Limits(control=1 << 20)
    a, b = pair(refuse, answer, limits)
    await asyncio.gather(a.greeted(5), b.greeted(5))
    b.pause()
    asked = [a.open(b"", b"", end=True) for _ in range(1000)]
    while b._peer_last < 1999 or b._tasks:
        await asyncio.sleep(0)
    assert b._control_size <= 2 * limits.quantum
    b.resume()
    async with asyncio.timeout(30):
        assert [len(await stream.receive() or b"") for stream in asked] == [4000] * 1000
    assert b.alive


async def endless(stream: Stream, header: bytes) -> None:
    """Always more."""
    while True:
        await stream.write(bytes(32 * 1024))


async def taken(stream: Stream) -> int:
    """Reads 4 MiB at full speed; the window at the end."""
    size = 0
    while size < 4 << 20:
        size += len(await stream.read())
    return stream.window


async def reading(limits: Limits, rtt: float) -> Mux:
    """An end whose round trip is what the test says."""
    mux, other = pair(refuse, endless, limits)
    await asyncio.gather(mux.greeted(5), other.greeted(5))
    mux.pings.got = lambda kind, payload: None  # type: ignore[method-assign] # nothing is measured
    mux.pings.rtt = rtt
    return mux


@pytest.mark.parametrize(("rtt", "window"), [(3600.0, 1 << 20), (0.0, 256 << 10)])
async def test_a_window_grows_with_the_round_trip(rtt: float, window: int) -> None:
    """Half a window read within a round trip doubles it, to 1 MiB at most; where the link is not the limit it stays."""
    mux = await reading(Limits(), rtt)
    stream = mux.open(b"")
    assert await taken(stream) == mux._windows == window
    stream.reset(Reset.CANCELLED)
    assert mux._windows == 0
    mux.abort("done")


async def test_the_sum_of_windows_bounds_their_growth() -> None:
    """Once all together have what a connection may hold, none grows further; what ends makes room."""
    mux = await reading(Limits(windows=1 << 20), 3600.0)
    first, second = mux.open(b""), mux.open(b"")
    assert [await taken(first), await taken(second)] == [512 << 10, 512 << 10]
    first.reset(Reset.CANCELLED)
    assert await taken(second) == mux._windows == 1 << 20
    mux.abort("done")


async def test_nothing_of_a_stream_goes_before_its_opening() -> None:
    """Though more control waits than goes into one write, and the stream's first bytes have a lane of their own."""
    a, b = pair(refuse, echo)
    await asyncio.gather(a.greeted(5), b.greeted(5))
    a.pause()
    before = [a.open(b"", bytes(8192), end=True) for _ in range(40)]
    last = a.open(b"")
    await last.send(b"first")
    await asyncio.sleep(0)
    a.resume()
    async with asyncio.timeout(10):
        assert await last.receive() == b"first"
        assert [len(await stream.receive() or b"") for stream in before] == [8192] * 40
    assert b.alive
    a.abort("done")
