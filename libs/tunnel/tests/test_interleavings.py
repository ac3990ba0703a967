"""Random interleavings, limits and losses drive two multiplexers: bytes stay exact, bounds hold at every turn, nothing is left over."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.tunnel import Ended, Limits, Lost, Mux, Reset, Stream, StreamEnded
from libs.tunnel.frames import COST
from libs.tunnel.tests.pipe import Pipe, echo, pair

MESSAGE = 2500
KINDS = ("echo", "cancel", "drop", "flood", "trailer", "break", "large", "early")
plan = st.lists(
    st.tuples(
        st.booleans(),  # which end opens
        st.lists(st.integers(0, MESSAGE), max_size=5),  # messages up
        st.sampled_from(KINDS),
        st.integers(0, 40),  # turns of the loop before it starts
    ),
    max_size=10,
)
bounds = st.builds(
    lambda frame, window, growth, **others: Limits(frame=frame, window=window, window_max=window * growth, **others),
    frame=st.just(4096), window=st.integers(600, 2000), growth=st.sampled_from((1, 2, 4)), windows=st.integers(0, 20_000),
    chunk=st.integers(40, 200), quantum=st.integers(40, 500), inline=st.integers(0, 100), message=st.just(MESSAGE),
    streams=st.integers(14, 64), ping_every=st.just(60.0),
)  # fmt: skip


@given(plan=plan, limits=bounds, seed=st.integers(0, 2**32), loss=st.none() | st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_any_interleaving_keeps_every_stream_exact(
    plan: list[tuple[bool, list[int], str, int]], limits: Limits, seed: int, loss: int | None
) -> None:
    """Whatever is opened, cancelled, dropped or flooded, however bytes are cut, and if all breaks off at any time."""
    asyncio.run(_run(plan, limits, random.Random(seed), loss))


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends, and whether the connection will be lost."""

    a: Mux
    b: Mux
    lost: bool

    def hold(self) -> None:
        """What is true at every turn."""
        for mux, other in ((self.a, self.b), (self.b, self.a)):
            streams = list(mux._streams.values())
            assert mux._windows == sum(s.window for s in streams)
            assert mux._windows <= mux.limits.windows + len(streams) * mux.limits.window
            for stream in streams:
                waiting = sum(COST + len(payload) for payload, _ in stream._in)
                assert waiting <= stream.window <= mux.limits.window_max
                assert stream._out_size <= 2 * mux.limits.chunk
                assert stream._credit >= 0
                peer = other.stream(stream.id)
                if peer is not None:
                    assert peer._credit <= stream.window


async def _run(plan: list[tuple[bool, list[int], str, int]], limits: Limits, rng: random.Random, loss: int | None) -> None:
    async def serve(stream: Stream, header: bytes) -> None:
        kind = header.decode()
        if kind == "flood":
            for _ in range(20):
                await stream.write(rng.randbytes(rng.randrange(1, 300)))
            stream.end()
        elif kind == "trailer":
            await stream.write(b"b" * rng.randrange(100))
            await stream.send(b"why" * rng.randrange(100), trailer=True)
        elif kind == "break":
            stream.reset(Reset.UPSTREAM, "broke")
        elif kind == "early":
            await stream.send(b"enough", end=True)
        elif kind != "drop":
            await echo(stream, header)

    a, b = pair(serve, serve, limits, cut=lambda: rng.choice((3, 64, 1000, 4000)))
    for mux in (a, b):
        assert isinstance(mux._carrier, Pipe)
        mux._carrier._mark = rng.choice((10, 1000, 65536))
    ends = Ends(a, b, loss is not None)
    await asyncio.gather(a.greeted(5), b.greeted(5))
    watching = asyncio.create_task(_watched(ends, loss))
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for left, sizes, kind, turns in plan:
            tasks.create_task(_one(ends, a if left else b, [rng.randbytes(s) for s in sizes], kind, turns))
    await _quiet(ends, watching)
    for mux in (a, b):
        assert (mux.streams, mux._windows, mux._partial, mux._peer_open, len(mux._tasks)) == (0, 0, 0, 0, 0)
        assert [len(lane) for lane in (mux._control, mux._ready, mux._quick)] == [0, 0, 0]


async def _quiet(ends: Ends, watching: asyncio.Task[None]) -> None:
    """Both ends at rest, and gone."""
    a, b = ends.a, ends.b
    async with asyncio.timeout(10):
        if not ends.lost:
            assert a.alive
            while a.streams or b.streams or a._tasks or b._tasks:
                await asyncio.sleep(0)
            assert b.alive
            watching.cancel()
            a.abort("done")
        await asyncio.gather(watching, return_exceptions=ends.lost is False)
        await asyncio.gather(a.closed(), b.closed())


async def _watched(ends: Ends, loss: int | None) -> None:
    turn = 0
    while turn != loss:
        ends.hold()
        turn += 1
        await asyncio.sleep(0)
    ends.a.abort("lost")


async def _one(ends: Ends, mux: Mux, messages: list[bytes], kind: str, turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        await _used(mux, messages, kind, turns)
    except Lost:
        assert ends.lost


async def _used(mux: Mux, messages: list[bytes], kind: str, turns: int) -> None:
    stream = mux.open(kind.encode())
    if kind in ("drop", "break"):
        await _ends(stream, Reset.INTERNAL if kind == "drop" else Reset.UPSTREAM)
        return
    if kind in ("flood", "trailer"):
        stream.end()
        while piece := await stream.read():
            assert kind == "flood" or set(piece) == set(b"b"), "a trailer is no body"
            await asyncio.sleep(0)
        assert stream.trailer is None or stream.trailer == b"why" * (len(stream.trailer) // 3)
        return
    if kind == "large":
        await _too_large(stream)
        return
    sending = asyncio.ensure_future(_sent(stream, messages, end=kind != "early"))
    try:
        if kind == "cancel":
            for _ in range(turns):
                await asyncio.sleep(0)
            stream.reset(Reset.CANCELLED)
            return
        got: list[bytes] = []
        try:
            while (message := await stream.receive()) is not None:
                got.append(message)
        except Lost:
            assert got == messages[: len(got)]
            raise
        assert got == ([b"enough"] if kind == "early" else messages)
    finally:
        await sending


async def _sent(stream: Stream, messages: list[bytes], *, end: bool) -> None:
    try:
        for message in messages:
            await stream.send(message)
        if end:
            stream.end()
    except StreamEnded as error:
        if not isinstance(error, Lost):
            _of(error, Reset.DONE, Reset.CANCELLED)


async def _ends(stream: Stream, code: Reset) -> None:
    try:
        await stream.receive()
    except Ended as ended:
        _of(ended, code)
    else:
        raise AssertionError("it did not end")


async def _too_large(stream: Stream) -> None:
    try:
        for _ in range(10):
            await stream.write(bytes(MESSAGE))  # one message, without its end
    except Ended as ended:
        _of(ended, Reset.TOO_LARGE)
    else:
        await _ends(stream, Reset.TOO_LARGE)


def _of(error: StreamEnded, *codes: Reset) -> None:
    if not isinstance(error, Ended) or error.code not in codes:
        raise AssertionError(f"ended for another reason than {codes}") from error
