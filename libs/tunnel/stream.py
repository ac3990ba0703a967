"""One stream of a tunnel: messages or raw bytes both ways, each way with its own credit and its own end."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NoReturn

from libs.tunnel.errors import Ended, ProtocolBroken, Reset, StreamEnded, TooLarge
from libs.tunnel.frames import COST, DATA, END, EOM, HEADER, TRAILER

if TYPE_CHECKING:
    from libs.tunnel.mux import Mux

SMALL = 4 * 1024  # least slice sent when credit runs out; the greatest last message in the control lane; what is interactive


class Stream:
    """One stream. One task sends and one task receives at a time.

    Attributes:
        id: number on the wire.
        trailer: what the peer said about the end, once `receive` or `read` returned the end.
        task: what serves it, when the peer opened it.
    """

    def __init__(self, mux: Mux, number: int) -> None:
        self.id = number
        self.trailer: bytes | None = None
        self.task: asyncio.Task[None] | None = None
        self._mux = mux
        self._limits = mux.limits
        self._out: deque[tuple[memoryview, int]] = deque()
        self._out_size = 0
        self._credit = mux.limits.window
        self._queued = False  # in the scheduler's round
        self._wrote = False
        self._closing = False  # END is queued; nothing may follow
        self._sent_end = False
        self._send_error: StreamEnded | None = None
        self._in: deque[tuple[bytes, int]] = deque()
        self._window = mux.limits.window
        self._open_window = mux.limits.window  # what the peer may still send
        self._unreturned = 0
        self._epoch_bytes = 0
        self._epoch_start = mux.time()
        self._got_end = False
        self._unwanted = False  # nobody will read on
        self._error: StreamEnded | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- sending

    async def send(self, message: bytes, *, end: bool = False, trailer: bool = False) -> None:
        """Sends one message, waiting while the peer takes no more; with `end` it is the last, as a `trailer` always is."""
        if len(message) > self._limits.message:
            raise TooLarge(f"message of {len(message)} bytes")
        flags = EOM | (END if end or trailer else 0) | (TRAILER if trailer else 0)
        if flags & END and self._send_last_now(message, flags):
            return
        await self._send(message, flags)

    async def write(self, content: bytes | memoryview) -> None:
        """Sends raw bytes, waiting while the peer takes no more."""
        if content:
            await self._send(content, 0)

    def end(self) -> None:
        """Ends our direction; the peer's goes on. Ending twice is harmless."""
        if not self._closing and self._send_error is None:
            self._queue(memoryview(b""), END)

    def reset(self, code: Reset, text: str = "") -> None:
        """Breaks the stream off, both ways, unless it is over already."""
        if self._over:
            return
        self._mux.send_reset(self.id, code, text)
        self.fail(Ended(code, text))

    def expire_after(self, seconds: float) -> None:
        """Breaks the stream off with DEADLINE when it is not over by then; a later call replaces an earlier one."""
        self.cancel_timer()
        if not self._over:
            self._timer = self._mux.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self.reset(Reset.DEADLINE, "time is up")
        if self.task is not None:
            self.task.cancel()

    def stop_reading(self) -> None:
        """What the peer still sends is not wanted; it hears so once our own direction has ended."""
        if self._got_end or self._error is not None:
            return
        self._unwanted = True
        self._in.clear()
        if self._sent_end:
            self.reset(Reset.DONE)

    def _send_last_now(self, message: bytes, flags: int) -> bool:
        """Puts a small last message into the control lane, when nothing of this stream waits before it."""
        cost = COST + len(message)
        held_back = bool(self._out) or self._closing or self._send_error is not None or self._mux.control_full
        if held_back or len(message) > SMALL or cost > self._credit:
            return False
        self._credit -= cost
        self._closing = self._wrote = True
        self._mux.control(HEADER.pack(DATA, flags, self.id, len(message)) + message)
        self._end_sent()
        return True

    async def _send(self, content: bytes | memoryview, flags: int) -> None:
        view = memoryview(content)
        chunk = self._limits.chunk
        at = 0
        try:
            while True:
                while self._out_size >= chunk and self._send_error is None:
                    await self._writable()
                piece = view[at : at + chunk]
                at += len(piece)
                last = at >= len(view)
                self._queue(piece, flags if last else flags & TRAILER)
                if last:
                    return
        except asyncio.CancelledError:
            if at:
                self.reset(Reset.CANCELLED)  # half a message cannot be taken back
            raise

    def _queue(self, piece: memoryview, flags: int) -> None:
        if self._send_error is not None:
            raise self._send_error
        if self._closing:
            raise Ended(Reset.DONE, "sent after the end")
        self._closing = bool(flags & END)
        self._wrote = True
        self._out.append((piece, flags))
        self._out_size += len(piece)
        self.may_send()

    async def _writable(self) -> None:
        self._writer = self._mux.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    # -- passing on

    async def take(self) -> tuple[bytes, int] | None:
        """The next piece as it came, for `give` of another stream; None after the end. Raises StreamEnded."""
        return await self._next()

    async def give(self, content: bytes, flags: int) -> None:
        """Sends a piece that another stream's `take` returned, waiting while the peer takes no more."""
        if not (flags & END and self._send_last_now(content, flags)):
            await self._send(content, flags)

    # -- what the scheduler asks

    @property
    def sendable(self) -> bool:
        """Whether a frame may go now."""
        return bool(self._out) and self._credit >= COST + min(len(self._out[0][0]), SMALL)

    def may_send(self) -> None:
        """Goes into the round, unless it is there or has nothing that may go."""
        if not self._queued and self.sendable:
            self._mux.ready(self)

    @property
    def little(self) -> bool:
        """Whether what waits is so little that it goes before bulk."""
        return self._out_size <= SMALL

    def emit(self, parts: list[bytes | memoryview], budget: int) -> int:
        """Appends frames worth about `budget` bytes; returns their worth."""
        size = 0
        while size < budget and self.sendable:
            piece, flags = self._out.popleft()
            room = min(self._credit - COST, max(budget - size, 1))
            if len(piece) > room:
                self._out.appendleft((piece[room:], flags))
                piece, flags = piece[:room], flags & TRAILER
            self._credit -= COST + len(piece)
            self._out_size -= len(piece)
            parts += (HEADER.pack(DATA, flags, self.id, len(piece)), piece)
            size += max(len(piece), COST)
            if flags & END:
                self._end_sent()
        if self._out_size < self._limits.chunk:
            _wake(self._writer)
        return size

    def _end_sent(self) -> None:
        self._sent_end = True
        if self._unwanted:
            self.reset(Reset.DONE)
        self._closed_if_over()

    # -- receiving

    async def receive(self) -> bytes | None:
        """The next message; None at the end. Raises StreamEnded."""
        parts: list[bytes] = []
        size = 0
        try:
            while (got := await self._next()) is not None:
                payload, flags = got
                if size + len(payload) > self._limits.message:
                    self._too_large(f"message over {self._limits.message} bytes")
                if flags & EOM:
                    whole = b"".join((*parts, payload)) if parts else payload
                    if not flags & TRAILER:
                        return whole
                    self.trailer = whole
                    return None
                if payload:
                    parts.append(payload)
                    size += len(payload)
                    if not self._mux.assemble(len(payload)):
                        self._too_large("too much of messages that are not whole")
        finally:
            if size:
                self._mux.assemble(-size)
        if parts:
            self.reset(Reset.BROKEN, "ended within a message")
            raise Ended(Reset.BROKEN, "ended within a message")
        return None

    def _too_large(self, why: str) -> NoReturn:
        self.reset(Reset.TOO_LARGE, why)
        raise TooLarge(why)

    async def read(self) -> bytes:
        """The next raw bytes; empty at the end. Raises StreamEnded."""
        while (got := await self._next()) is not None:
            payload, flags = got
            if flags & TRAILER:
                self.trailer = (self.trailer or b"") + payload
                if len(self.trailer) > self._limits.message:
                    self._too_large("a trailer without end")
            elif payload:
                return payload
        return b""

    async def _next(self) -> tuple[bytes, int] | None:
        while not self._in:
            if self._error is not None:
                raise self._error
            if self._got_end:
                return None
            self._reader = self._mux.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        payload, flags = self._in.popleft()
        self._consumed(COST + len(payload))
        return payload, flags

    def _consumed(self, cost: int) -> None:
        if self._got_end or self._error is not None:
            return
        self._unreturned += cost
        self._epoch_bytes += cost
        if self._epoch_bytes >= self._window // 2:
            self._maybe_grow()
        if self._unreturned >= self._window // 4:
            self._open_window += self._unreturned
            self._mux.send_credit(self.id, self._unreturned)
            self._unreturned = 0

    def _maybe_grow(self) -> None:
        """Doubles the window when half of it was consumed within one round trip: the window is what limits the speed."""
        now = self._mux.time()
        quick = now - self._epoch_start <= self._mux.pings.rtt
        self._epoch_bytes, self._epoch_start = 0, now
        if quick and self._window * 2 <= self._limits.window_max and self._mux.may_grow(self._window):
            self._unreturned += self._window
            self._window *= 2

    # -- what the multiplexer tells

    def opened(self, cost: int, unread: int, *, ours: bool) -> None:
        """Accounts for OPEN, which counts against the window; `unread` of it is consumed when the first message is read."""
        if ours:
            self._credit -= cost
            return
        self._open_window -= cost
        self._overrun_check()
        self._consumed(cost - unread)

    def sent_with_open(self, flags: int) -> None:
        """OPEN carried the first message, perhaps the last."""
        if flags & END:
            self._closing = True
            self._end_sent()

    def got(self, payload: bytes, flags: int, *, counted: bool = False) -> None:
        """Takes bytes from the peer; raises ProtocolBroken when they exceed the credit or follow the end."""
        if self._got_end:
            raise ProtocolBroken("bytes after the end of a stream")
        if not counted:
            self._open_window -= COST + len(payload)
            self._overrun_check()
        if not self._unwanted:
            self._in.append((payload, flags))
        if flags & END:
            self._got_end = True
        _wake(self._reader)
        self._closed_if_over()

    def credited(self, amount: int) -> None:
        """The peer takes more."""
        self._credit += amount
        self.may_send()

    def was_reset(self, code: Reset, text: str) -> None:
        """The peer broke the stream off. What it had sent to its very end stays readable."""
        error = Ended(code, text)
        if self._got_end:
            self._stop_sending(error)
            self._mux.forget(self)
        else:
            self.fail(error)
        if self.task is not None:
            self.task.cancel()

    def fail(self, error: StreamEnded) -> None:
        """Ends both directions at once; what was not read yet is dropped."""
        if self._error is None:
            self._error = error
        self._in.clear()
        _wake(self._reader)
        self._stop_sending(error)
        self._mux.forget(self)

    @property
    def error(self) -> StreamEnded | None:
        """Why the stream broke off; None while it has not."""
        return self._error or self._send_error

    @property
    def window(self) -> int:
        """What the stream may hold unread."""
        return self._window

    @property
    def sending_over(self) -> bool:
        """Whether our direction is ended, or will be once what is queued has gone."""
        return self._closing or self._send_error is not None

    @property
    def wrote(self) -> bool:
        """Whether anything was sent, or queued to be sent, since the stream was opened."""
        return self._wrote

    @property
    def held(self) -> int:
        """Bytes received and not read yet."""
        return sum(len(payload) for payload, _ in self._in)

    @property
    def _over(self) -> bool:
        return self._error is not None or (self._got_end and (self._sent_end or self._send_error is not None))

    def _stop_sending(self, error: StreamEnded) -> None:
        if not self._sent_end and self._send_error is None:
            self._send_error = error
        self._out.clear()
        self._out_size = 0
        _wake(self._writer)

    def _overrun_check(self) -> None:
        if self._open_window < 0:
            raise ProtocolBroken(f"stream {self.id} was sent more than its window")

    def _closed_if_over(self) -> None:
        if self._got_end and self._sent_end:
            self._mux.forget(self)

    def cancel_timer(self) -> None:
        """Nothing ends the stream by time any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
