"""The multiplexer: streams in, frames out, one turn at a time. It is fed by a carrier and asks it only to write."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from libs import log
from libs.tunnel.carrier import Carrier
from libs.tunnel.errors import Ended, Lost, ProtocolBroken, Reset, StreamEnded, TooLarge
from libs.tunnel.frames import COST, CREDIT, DATA, END, EOM, HEADER, OPEN, PING, PONG, RESET, TIMES, U32, Framer
from libs.tunnel.limits import Limits
from libs.tunnel.pings import Pings, wall_millis
from libs.tunnel.stream import SMALL, Stream

_log = log.get("libs.tunnel")
_WRITES_PER_TURN = 4
_LAST_ID = 2**32 - 2
_TEXT = 256  # bytes of a reset's text
Accept = Callable[[Stream, bytes], Coroutine[Any, Any, None]]


class Mux:
    """One tunnel.

    Attributes:
        pings: what they tell of the peer.
        limits: its bounds.
    """

    def __init__(
        self, carrier: Carrier, *, odd: bool, accept: Accept, limits: Limits | None = None, name: str = "tunnel",
        now_millis: Callable[[], int] = wall_millis,
    ) -> None:  # fmt: skip
        """Makes one end.

        Args:
            carrier: what carries the frames.
            odd: whether streams opened here have odd numbers (the hub's end).
            accept: serves a stream that the peer opened; its second argument is the stream's header.
            limits: bounds; `window` must be the peer's too.
            name: for logs and task names.
            now_millis: wall time that is told to the peer.
        """
        self.loop = asyncio.get_running_loop()
        self.time = self.loop.time
        self.limits = limits or Limits()
        self.framer = Framer(self._on_frame, limit=self.limits.frame)
        self._carrier = carrier
        self._accept = accept
        self._name = name
        self._streams: dict[int, Stream] = {}
        self._next_id = 1 if odd else 2
        self._peer_parity = 0 if odd else 1
        self._peer_last = 0
        self._peer_open = 0
        self._control: deque[tuple[bytes, Stream | None]] = deque()  # with the stream that a frame opens
        self._control_size = 0
        self._credits: dict[int, int] = {}
        self._quick: deque[Stream] = deque()  # interactive: a little of what was idle, such as a key or an event
        self._ready: deque[Stream] = deque()
        self._paused = False
        self._scheduled = False
        self._windows = 0
        self._partial = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._hello: asyncio.Future[bytes] = self.loop.create_future()
        self._closed: asyncio.Future[None] = self.loop.create_future()
        self._error: Lost | None = None
        self.pings = Pings(self.limits, send=self.control, give_up=self.abort, now_millis=now_millis)

    # -- for callers

    def hello(self, message: bytes) -> None:
        """Sends our first message, on stream 0."""
        self.control(HEADER.pack(DATA, EOM, 0, len(message)) + message)
        self.pings.ask()

    async def greeted(self, within: float) -> bytes:
        """The peer's first message; raises TimeoutError or Lost."""
        async with asyncio.timeout(within):
            return await asyncio.shield(self._hello)

    def open(self, header: bytes, first: bytes | None = None, *, end: bool = False) -> Stream:
        """Opens a stream.

        Args:
            header: what the peer's `accept` gets.
            first: a first message of at most `limits.inline` bytes that rides along.
            end: nothing follows from our side.
        """
        if self._error is not None:
            raise self._error
        if self._next_id > _LAST_ID:
            self.abort("all numbers of streams are used up")
            raise self._error or Lost("the tunnel is gone")
        if len(self._streams) - self._peer_open >= self.limits.streams or self._control_size > self.limits.control // 2:
            raise Ended(Reset.REFUSED, "too many streams are open, or the peer takes too little")
        payload = U32.pack(len(header)) + header + (first or b"")
        if 2 * COST + len(payload) > self.limits.window or len(first or b"") > self.limits.inline:
            raise TooLarge(f"stream header of {len(header)} bytes")
        flags = (END if end else 0) | (EOM if first is not None else 0)
        stream = Stream(self, self._next_id)
        self._next_id += 2
        self._add(stream)
        stream.opened(2 * COST + len(payload), 0, ours=True)
        stream._queued = True  # noqa: SLF001 -- the scheduler's own mark: in no lane before its opening has left
        self.control(HEADER.pack(OPEN, flags, stream.id, len(payload)) + payload, stream)
        stream.sent_with_open(flags)
        return stream

    @property
    def alive(self) -> bool:
        """Whether streams can be opened."""
        return self._error is None

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def stream(self, number: int) -> Stream | None:
        """An open stream by its number."""
        return self._streams.get(number)

    def abort(self, why: str) -> None:
        """Drops the connection and everything on it."""
        if self._error is None:
            _log.info("tunnel.aborted", tunnel=self._name, why=why)
            self.lost(why)
            self._carrier.abort()

    def reset_all(self, code: Reset, text: str) -> None:
        """Breaks off every stream; the connection stays."""
        for stream in list(self._streams.values()):
            stream.reset(code, text)
            if stream.task is not None:
                stream.task.cancel()

    async def closed(self) -> None:
        """Returns when the connection is gone and the tasks that served its streams have ended."""
        await asyncio.shield(self._closed)
        if tasks := [t for t in self._tasks if t is not asyncio.current_task()]:
            await asyncio.wait(tasks)

    # -- for the carrier

    def pause(self) -> None:
        """The carrier's buffer is full."""
        self._paused = True

    def resume(self) -> None:
        """The carrier has room again."""
        self._paused = False
        if not self._scheduled and self._waiting():
            self._pump()

    def received(self, count: int) -> None:
        """The carrier read `count` bytes into `framer.buffer()`."""
        self.pings.heard = self.time()
        try:
            self.framer.advance(count)
        except ProtocolBroken as error:
            self.abort(f"the peer broke the protocol: {error}")

    def lost(self, why: str) -> None:
        """The connection is gone: every stream fails now."""
        if self._error is not None:
            return
        self._error = Lost(f"the tunnel is gone: {why}")
        self.pings.stop()
        for stream in list(self._streams.values()):
            stream.fail(self._error)
        for task in self._tasks:
            task.cancel()
        self._control.clear()
        self._quick.clear()
        self._ready.clear()
        if not self._hello.done():
            self._hello.set_exception(self._error)
            self._hello.exception()  # whoever does not wait for it need not hear of it
        self._closed.set_result(None)

    # -- for streams

    def control(self, frame: bytes, opens: Stream | None = None) -> None:
        """Queues a frame before all bulk."""
        if self._error is not None:
            return
        self._control.append((frame, opens))
        self._control_size += COST + len(frame)
        if self._control_size > self.limits.control:
            self.abort("the peer takes no control frames")
            return
        self._wake()

    def ready(self, stream: Stream) -> None:
        """Puts a stream into the round."""
        if self._error is None:
            stream._queued = True  # noqa: SLF001 -- the scheduler's own mark
            (self._quick if stream.little else self._ready).append(stream)
            self._wake()

    @property
    def control_full(self) -> bool:
        """Whether so much control waits that what may go with the bulk should."""
        return self._control_size > self.limits.quantum

    def send_credit(self, number: int, amount: int) -> None:
        """Lets the peer send more on a stream."""
        self._credits[number] = self._credits.get(number, 0) + amount
        self._wake()

    def send_reset(self, number: int, code: Reset, text: str) -> None:
        """Tells the peer that a stream is broken off."""
        payload = U32.pack(code) + text.encode()[:_TEXT]
        self.control(HEADER.pack(RESET, 0, number, len(payload)) + payload)

    def may_grow(self, by: int) -> bool:
        """Whether one more window may grow; counts it when it may."""
        if self._windows + by > self.limits.windows:
            return False
        self._windows += by
        return True

    def assemble(self, size: int) -> bool:
        """Counts bytes of messages that are not whole yet, negative once they are; whether all streams together may hold so much."""
        self._partial += size
        return self._partial <= self.limits.partial

    def forget(self, stream: Stream) -> None:
        """The stream is over."""
        if self._streams.pop(stream.id, None) is None:
            return
        stream.cancel_timer()
        self._windows -= stream.window
        self._credits.pop(stream.id, None)
        if stream.id & 1 == self._peer_parity:
            self._peer_open -= 1

    def _add(self, stream: Stream) -> None:
        self._streams[stream.id] = stream
        self._windows += stream.window

    # -- the scheduler

    def _waiting(self) -> bool:
        return bool(self._control or self._credits or self._quick or self._ready)

    def _wake(self) -> None:
        if not self._scheduled and not self._paused and self._error is None:
            self._scheduled = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        for _ in range(_WRITES_PER_TURN):
            if self._paused or self._error is not None:
                return
            parts = self._pull()
            if not parts:
                return
            self._carrier.write(b"".join(parts))
        if self._waiting():
            self._wake()

    def _pull(self) -> list[bytes | memoryview]:
        """At most a quantum of control, half of one of what is interactive, and the rest of that of bulk: each stream has its turn."""
        parts: list[bytes | memoryview] = []
        size = 0
        for number, amount in self._credits.items():
            parts.append(HEADER.pack(CREDIT, 0, number, U32.size) + U32.pack(amount))
        self._credits.clear()
        while self._control and size < self.limits.quantum:
            frame, opened = self._control.popleft()
            self._control_size -= COST + len(frame)
            if opened is not None:
                opened._queued = False  # noqa: SLF001 -- as above
                opened.may_send()
            parts.append(frame)
            size += len(frame)
        size = self._turns(parts, self._quick, min(SMALL, self.limits.chunk), self.limits.quantum // 2)
        self._turns(parts, self._ready, self.limits.chunk, max(self.limits.quantum - size, 1))
        return parts

    def _turns(self, parts: list[bytes | memoryview], lane: deque[Stream], each: int, most: int) -> int:
        """Streams of a lane send, `each` bytes a turn; one that has more waits with the bulk."""
        size = 0
        while lane and size < most:
            stream = lane.popleft()
            size += stream.emit(parts, each)
            stream._queued = stream.sendable  # noqa: SLF001 -- the scheduler's own mark
            if stream._queued:  # noqa: SLF001 -- stream and multiplexer are one thing in two files
                self._ready.append(stream)
        return size

    # -- frames from the peer

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._error is not None:
            return
        if kind == DATA:
            self._on_data(flags, number, payload)
        elif kind == CREDIT and len(payload) == U32.size:
            if (stream := self._known(number)) is not None:
                stream.credited(U32.unpack(payload)[0])
        elif kind == OPEN and len(payload) >= U32.size:
            self._on_open(flags, number, payload)
        elif kind == RESET and len(payload) >= U32.size:
            self._on_reset(number, payload)
        elif kind in (PING, PONG) and len(payload) == TIMES.size:
            self.pings.got(kind, payload)
        else:
            raise ProtocolBroken(f"frame of type {kind} with {len(payload)} bytes")

    def _known(self, number: int) -> Stream | None:
        """The stream; None for one that is over; raises for one that never was."""
        stream = self._streams.get(number)
        if stream is None and not 0 < number <= (self._peer_last if number & 1 == self._peer_parity else self._next_id - 2):
            raise ProtocolBroken(f"frame for stream {number}, which was never opened")
        return stream

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        if number == 0:
            if self._hello.done() or not flags & EOM:
                raise ProtocolBroken("second greeting")
            self._hello.set_result(payload)
        elif (stream := self._known(number)) is not None:
            stream.got(payload, flags)

    def _on_open(self, flags: int, number: int, payload: bytes) -> None:
        if not self._hello.done():
            raise ProtocolBroken("stream opened before the greeting")
        size = U32.size + U32.unpack_from(payload)[0]
        if number & 1 != self._peer_parity or number <= self._peer_last or size > len(payload):
            raise ProtocolBroken(f"stream {number} cannot be opened")
        self._peer_last = number
        if max(self._peer_open, len(self._tasks)) >= self.limits.streams:  # tasks: of streams that were opened and reset at once
            self.send_reset(number, Reset.REFUSED, "too many streams are open")
            return
        self._peer_open += 1
        stream = Stream(self, number)
        self._add(stream)
        stream.opened(2 * COST + len(payload), COST + len(payload) - size if flags else 0, ours=False)
        if flags:
            stream.got(payload[size:], flags, counted=True)
        task = self.loop.create_task(self._serve(stream, payload[U32.size : size]), name=f"{self._name} stream {number}")
        stream.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream, header: bytes) -> None:
        try:
            await self._accept(stream, header)
            if not stream.sending_over:
                stream.reset(Reset.INTERNAL, "not answered")
        except TooLarge as error:
            stream.reset(Reset.TOO_LARGE, str(error))
        except StreamEnded:
            stream.reset(Reset.INTERNAL, "broken off")  # nothing when this very stream has ended already
        except asyncio.CancelledError:
            stream.reset(Reset.CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 -- a task's last line: the peer hears that it failed, the log hears why
            _log.error("tunnel.stream_failed", tunnel=self._name, stream=stream.id, exc_info=error)
            stream.reset(Reset.INTERNAL, "internal error")
        finally:
            stream.task = None
            stream.stop_reading()

    def _on_reset(self, number: int, payload: bytes) -> None:
        stream = self._known(number)
        if stream is None:
            return
        code = U32.unpack_from(payload)[0]
        known = Reset(code) if code in Reset._value2member_map_ else Reset.INTERNAL
        stream.was_reset(known, payload[U32.size :].decode(errors="replace")[:_TEXT])
