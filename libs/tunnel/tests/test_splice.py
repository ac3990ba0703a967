"""Two streams joined in the middle: what goes in on one side comes out on the other, ends and reasons too."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from libs.tunnel import Ended, Limits, Lost, Mux, Reset, Stream
from libs.tunnel.splice import splice
from libs.tunnel.tests.pipe import Serve, echo, pair, refuse

SMALL = Limits(window=4096, window_max=8192, chunk=1024)


def joined(last: Serve, limits: Limits | None = None, *, cut: Callable[[], int] = lambda: 1 << 20) -> tuple[Mux, Mux, Mux]:
    """An end that asks, the middle's far connection, and the end that serves."""

    async def middle(near: Stream, header: bytes) -> None:
        await splice(near, far.open(header))

    far, serving = pair(refuse, last, limits, cut=cut)
    asking, _ = pair(refuse, middle, limits, cut=cut)
    return asking, far, serving


async def answered(stream: Stream, header: bytes) -> None:
    """Takes all, then answers its size and the header, as a small last message."""
    size = 0
    while chunk := await stream.read():
        size += len(chunk)
    await stream.send(b"%d %s" % (size, header), end=True)


async def test_a_request_that_came_whole_with_its_opening_is_answered() -> None:
    """No body, a body in the opening, a body after it."""
    asking, *_ = joined(answered)
    for first in (None, b"x" * 100):
        stream = asking.open(b"head", first, end=True)
        async with asyncio.timeout(5):
            assert await stream.receive() == b"%d head" % len(first or b"")
            assert await stream.receive() is None
    stream = asking.open(b"head")
    await stream.write(b"x" * 300_000)
    stream.end()
    async with asyncio.timeout(5):
        assert await stream.receive() == b"300000 head"
    assert not asking.streams


async def test_messages_and_trailers_keep_their_bounds() -> None:
    """Many messages of odd sizes through small windows and cut frames, echoed; the trailer is the last."""
    source = random.Random(7)

    async def serve(stream: Stream, header: bytes) -> None:
        del header
        while (message := await stream.receive()) is not None:
            await stream.send(message)
        await stream.send(b"how it ended", trailer=True)

    asking, *_ = joined(serve, SMALL, cut=lambda: source.randint(1, 700))
    stream = asking.open(b"")
    messages = [source.randbytes(source.randint(0, 9000)) for _ in range(40)]

    async def sent() -> None:
        for message in messages:
            await stream.send(message)
        stream.end()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(sent())
        assert [await stream.receive() for _ in messages] == messages
        assert await stream.receive() is None
    assert stream.trailer == b"how it ended"


async def test_a_reset_of_either_end_reaches_the_other_with_its_reason() -> None:
    """Asked: the serving end hears why. Serving: the asker does."""
    reasons: asyncio.Queue[object] = asyncio.Queue()

    async def serve(stream: Stream, header: bytes) -> None:
        if header == b"break":
            stream.reset(Reset.UPSTREAM, "broke")
            return
        try:
            await asyncio.Event().wait()
        finally:
            reasons.put_nowait(stream.error)

    asking, far, _ = joined(serve)
    broken = asking.open(b"break")
    async with asyncio.timeout(5):
        with pytest.raises(Ended, match="broke") as caught:
            await broken.receive()
        assert caught.value.code is Reset.UPSTREAM
        held = asking.open(b"hold")
        await asyncio.sleep(0.05)
        held.reset(Reset.EXPIRED, "access ended")
        error = await reasons.get()
        assert isinstance(error, Ended)
        assert (error.code, error.text) == (Reset.EXPIRED, "access ended")
    assert not far.streams


async def test_an_answer_before_the_body_was_read_comes_whole() -> None:
    """Who serves does not want the rest of the body; the asker gets the answer and may stop sending."""

    async def serve(stream: Stream, header: bytes) -> None:
        del header
        await stream.send(b"no need", end=True)

    asking, far, _ = joined(serve, SMALL)
    stream = asking.open(b"")

    async def sent() -> None:
        with pytest.raises(Ended) as caught:
            await stream.write(b"x" * 10_000_000)
        assert caught.value.code is Reset.DONE

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(sent())
        assert await stream.receive() == b"no need"
    assert not far.streams


async def test_a_lost_tunnel_behind_is_told_as_such() -> None:
    """The asker's own connection stands, and its other streams go on."""
    asking, far, _ = joined(echo)
    stream = asking.open(b"")
    await stream.send(b"1")
    async with asyncio.timeout(5):
        assert await stream.receive() == b"1"
        far.abort("gone")
        with pytest.raises(Ended) as caught:
            await stream.receive()
    assert caught.value.code is Reset.LOST
    assert asking.alive


async def test_a_lost_asker_frees_what_is_behind() -> None:
    """No stream stays open towards the serving end."""
    asking, far, _ = joined(echo)
    stream = asking.open(b"")
    await stream.send(b"1")
    async with asyncio.timeout(5):
        assert await stream.receive() == b"1"
        asking.abort("gone")
        with pytest.raises(Lost):
            await stream.receive()
        while far.streams:
            await asyncio.sleep(0.01)


async def test_a_reader_that_is_stuck_holds_one_window() -> None:
    """Back-pressure goes through: who serves can send no more than the windows on the way."""
    sent = 0

    async def serve(stream: Stream, header: bytes) -> None:
        nonlocal sent
        del header
        while True:
            await stream.write(b"x" * 1024)
            sent += 1024

    asking, far, _ = joined(serve, SMALL)
    stream = asking.open(b"")
    await asyncio.sleep(0.2)
    held = sent
    await asyncio.sleep(0.1)
    assert held == sent <= 2 * (SMALL.window_max + 3 * SMALL.chunk)
    stream.reset(Reset.CANCELLED)
    async with asyncio.timeout(5):
        while far.streams:
            await asyncio.sleep(0.01)
