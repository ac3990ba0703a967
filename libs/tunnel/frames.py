"""Frames on the wire: type, flags, u32 stream, u32 length (10 bytes, network order), then the payload."""

from __future__ import annotations

import struct
from collections.abc import Callable

from libs.tunnel.errors import ProtocolBroken

# Frame types. OPEN: u32 length of the header, header, first bytes. CREDIT: u32. RESET: u32 code, text. PING, PONG: token, millis.
OPEN, DATA, CREDIT, RESET, PING, PONG = 1, 2, 3, 4, 5, 6
# Flags of OPEN and DATA. A TRAILER is a last message that tells how the stream ended.
END, EOM, TRAILER = 1, 2, 4

HEADER = struct.Struct("!BBII")
U32 = struct.Struct("!I")
TIMES = struct.Struct("!Qq")
COST = 64  # what a queued frame holds besides its payload; it counts against the window, so empty frames are bounded too
_BUFFER = 32 * 1024

OnFrame = Callable[[int, int, int, bytes], None]


class Framer:
    """Cuts a byte stream into frames, with one copy per frame."""

    def __init__(self, on_frame: OnFrame, *, limit: int) -> None:
        self._on_frame = on_frame
        self._limit = limit
        self._store = bytearray(_BUFFER)
        self._view = memoryview(self._store)
        self._filled = 0
        self._long: bytearray | None = None  # payload of a frame that did not fit what was read at once
        self._long_view = memoryview(b"")
        self._long_filled = 0
        self._long_head = (0, 0, 0)

    def buffer(self) -> memoryview:
        """Where the carrier reads to."""
        if self._long is not None:
            return self._long_view[self._long_filled :]
        return self._view[self._filled :]

    def advance(self, count: int) -> None:
        """Takes `count` bytes read into `buffer()`; raises ProtocolBroken."""
        if self._long is None:
            self._cut(self._filled + count)
            return
        self._long_filled += count
        if self._long_filled == len(self._long):
            payload = bytes(self._long)
            self._long, self._long_view = None, memoryview(b"")
            self._on_frame(*self._long_head, payload)

    def feed(self, content: bytes) -> None:
        """Takes bytes from a carrier that brings its own buffers; raises ProtocolBroken."""
        view = memoryview(content)
        while view:
            target = self.buffer()
            count = min(len(target), len(view))
            target[:count] = view[:count]
            self.advance(count)
            view = view[count:]

    def _cut(self, end: int) -> None:
        at = 0
        view = self._view
        while end - at >= HEADER.size:
            kind, flags, stream, length = HEADER.unpack_from(view, at)
            if length > self._limit:
                raise ProtocolBroken(f"frame of {length} bytes")
            start = at + HEADER.size
            if start + length > end:
                self._begin_long((kind, flags, stream), length, view[start:end])
                at = end
                break
            at = start + length
            self._on_frame(kind, flags, stream, bytes(view[start:at]))
        self._filled = end - at
        if self._filled and at:
            view[: self._filled] = bytes(view[at:end])

    def _begin_long(self, head: tuple[int, int, int], length: int, have: memoryview) -> None:
        self._long = bytearray(length)
        self._long_view = memoryview(self._long)
        self._long_view[: len(have)] = have
        self._long_filled = len(have)
        self._long_head = head
