"""A carrier in memory: what one end writes comes out of the other, cut where a test says, with a bounded buffer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from libs.tunnel import Limits, Mux, Stream

Serve = Callable[[Stream, bytes], Awaitable[None]]


class Pipe:
    """One end's carrier."""

    def __init__(self, cut: Callable[[], int], mark: int = 65536) -> None:
        self.mux: Mux | None = None
        self.other: Pipe | None = None
        self.dead = False
        self.written = 0
        self._cut = cut
        self._mark = mark
        self._waiting: deque[bytes] = deque()
        self._size = 0

    def write(self, content: bytes) -> None:
        """Takes bytes, and pauses the writer above the mark."""
        if self.dead:
            return
        self.written += len(content)
        self._waiting.append(content)
        self._size += len(content)
        if self._size > self._mark and self.mux:
            self.mux.pause()
        asyncio.get_running_loop().call_soon(self._deliver)

    def abort(self) -> None:
        """Breaks both ends."""
        for pipe in (self, self.other):
            if pipe and not pipe.dead:
                pipe.dead = True
                if pipe.mux:
                    pipe.mux.lost("cut")

    def _deliver(self) -> None:
        if self.dead or not self._waiting or not (self.other and self.other.mux):
            return
        head = self._waiting.popleft()
        count = min(self._cut(), len(head))
        if count < len(head):
            self._waiting.appendleft(head[count:])
        self._size -= count
        say(self.other.mux, memoryview(head)[:count])
        if self._size <= self._mark // 4 and self.mux:
            self.mux.resume()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._deliver)


def say(mux: Mux, content: bytes | memoryview) -> None:
    """What an end hears of its peer."""
    view = memoryview(content)
    while view and mux.alive:
        target = mux.framer.buffer()
        n = min(len(target), len(view))
        target[:n] = view[:n]
        mux.received(n)
        view = view[n:]


def pair(left: Serve, right: Serve, limits: Limits | None = None, *, cut: Callable[[], int] = lambda: 1 << 20) -> tuple[Mux, Mux]:
    """Two greeted ends; the first opens odd streams."""
    a, b = Pipe(cut), Pipe(cut)
    a.other, b.other = b, a
    a.mux = Mux(a, odd=True, accept=left, limits=limits, name="a")  # type: ignore[arg-type] # awaitable functions are enough
    b.mux = Mux(b, odd=False, accept=right, limits=limits, name="b")  # type: ignore[arg-type] # as above
    a.mux.hello(b"a")
    b.mux.hello(b"b")
    return a.mux, b.mux


async def refuse(stream: Stream, header: bytes) -> None:
    """Serves nothing."""
    raise AssertionError(f"stream {stream.id} was not expected: {header!r}")


async def echo(stream: Stream, header: bytes) -> None:
    """Sends every message back, then ends."""
    while (message := await stream.receive()) is not None:
        await stream.send(message)
    stream.end()
