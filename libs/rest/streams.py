"""Server streams as SSE or newline JSON: what is ready goes out in one write, silence is filled with keep-alives."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from libs.faults import DeadlineExceeded, Fault
from libs.rest import errors
from libs.rest.encode import to_json

KEEP_ALIVE_SECONDS = 15.0
FLUSH_SECONDS = 0.01  # at least that long between two writes of a busy stream; a lone event and a full batch go out at once
_GRACE_SECONDS = 0.25  # an answer that fails at once is an HTTP error, not a stream with an error in it
_WAITING = 500  # items between the call and the client's socket; a full box holds the call back
_BATCH = 250  # items of a write
_WAITING_BYTES = 4 * 1024 * 1024  # the same two bounds for large items, as they are encoded before they are JSON
_BATCH_BYTES = 512 * 1024
_RESUME = "resume_token"
Encode = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class Form:
    """How items and faults look on the wire."""

    framed: Callable[[type[Message], Encode], Callable[[list[Any]], bytes]]  # of messages of a type with such JSON: the bytes of some
    fault: Callable[[Fault, str], bytes]  # of a fault and the id of the request
    keep_alive: bytes


def _sse(response_class: type[Message], encode: Encode) -> Callable[[list[Any]], bytes]:
    """Events; JSON of ours holds no line breaks. A resume token is an event's id, which an EventSource sends back."""
    if _RESUME in cast("Descriptor", response_class.DESCRIPTOR).fields_by_name:
        return lambda messages: b"".join([_event(message, encode(message)) for message in messages])
    return lambda messages: b"data: " + b"\n\ndata: ".join([encode(m) for m in messages]) + b"\n\n" if messages else b""


def _event(message: Any, text: bytes) -> bytes:
    token = message.resume_token
    return (f"id: {token}\ndata: ".encode() if token else b"data: ") + text + b"\n\n"


def _ndjson(_response_class: type[Message], encode: Encode) -> Callable[[list[Any]], bytes]:
    return lambda messages: b"".join([encode(m) + b"\n" for m in messages])


SSE_FORM = Form(_sse, lambda fault, id_: b"event: error\ndata: " + errors.answer(fault, id_)[2] + b"\n\n", b": keep-alive\n\n")
NDJSON_FORM = Form(_ndjson, lambda fault, id_: errors.answer(fault, id_)[2] + b"\n", b"\n")


class _Box:
    """What waits between the call, which puts, and the client's socket, which takes; one of each."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.held = 0  # bytes of them
        self.mark = _WAITING  # so many are more than enough
        self.ended = False
        self.fault: Fault | None = None
        self._loop = asyncio.get_running_loop()
        self._enough = self._loop.create_future()
        self._room: asyncio.Future[None] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is there and nothing will come."""
        return self.ended and not self.items

    async def room(self) -> None:
        """Until the box is half empty."""
        self._room = self._loop.create_future()
        await self._room

    def reached(self) -> bool:
        """The mark is reached: who waits is told; whether there is room for more."""
        self.mark = _WAITING
        _wake(self._enough)
        return len(self.items) < _WAITING and self.held < _WAITING_BYTES

    def end(self, fault: Fault | None) -> None:
        """Nothing more comes."""
        self.ended, self.fault = True, fault
        _wake(self._enough)

    async def wait(self, wanted: int, seconds: float | None = None) -> None:
        """Until so many are there, nothing more will come, or the time is up."""
        if len(self.items) >= wanted or self.ended:
            return
        self.mark, self._enough = wanted, self._loop.create_future()
        timer = None if seconds is None else self._loop.call_later(seconds, _wake, self._enough)
        try:
            await self._enough
        finally:
            self.mark = _WAITING
            if timer is not None:
                timer.cancel()

    def take(self) -> list[Any]:
        """As many as a write may hold."""
        count = _BATCH if self.held <= _BATCH_BYTES else self._fitting()
        taken = self.items[:count]
        del self.items[:count]
        self.held = self.held - sum(map(_size, taken)) if self.items else 0
        if self._room is not None and len(self.items) <= _WAITING // 2 and self.held <= _WAITING_BYTES // 2:
            _wake(self._room)
        return taken

    def _fitting(self) -> int:
        size = 0
        for count, item in enumerate(self.items[:_BATCH]):
            size += _size(item)
            if size > _BATCH_BYTES:
                return max(1, count)
        return _BATCH


def _size(item: Any) -> int:
    return len(item) if isinstance(item, bytes) else item.ByteSize()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def chunks(
    items: AsyncGenerator[Any, None], response_class: type[Message], form: Form, encode: Encode = to_json, *, request_id: str = ""
) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream, batch by batch; the first is empty and says that the call is let in.

    Args:
        items: announced messages, bytes of messages, or lists of them; run to their end in a task of their own and closed there.
        response_class: of the messages.
        form: SSE_FORM or NDJSON_FORM.
        encode: what makes the JSON of a message.
        request_id: told with a fault.

    Raises:
        Fault: before the first chunk, when the call is refused or fails at once.
    """
    box, framed = _Box(), form.framed(response_class, encode)
    pump = asyncio.create_task(_pump(items, box), name="rest stream")  # owned by this generator, which ends it
    try:
        await _let_in(box)
        yield b""
        flushed = 0.0
        while not box.over:
            await _ready(box, flushed)
            found = framed([response_class.FromString(m) if isinstance(m, bytes) else m for m in box.take()])
            yield found or (b"" if box.over else form.keep_alive)
            flushed = time.monotonic()
        if box.fault is not None:  # behind the loop, since it may have come while the last batch was written
            yield form.fault(box.fault, request_id)
    finally:
        pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pump


async def _pump(items: AsyncGenerator[Any, None], box: _Box) -> None:
    fault: Fault | None = None
    waiting = box.items
    try:
        async with aclosing(items):
            async for yielded in items:
                for item in yielded if isinstance(yielded, list) else (yielded,):
                    waiting.append(item)
                    box.held += _size(item) if item is not None else 0
                    if (len(waiting) >= box.mark or box.held >= _WAITING_BYTES) and not box.reached():
                        await box.room()
    except Fault as error:
        fault = error
    except asyncio.CancelledError:
        if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
            raise
        fault = DeadlineExceeded("the stream's time is up")  # which it was while a slow client was waited for, outside of the call
    finally:
        box.end(fault)


async def _let_in(box: _Box) -> None:
    """Waits until the call is let in; raises its fault, also when it fails at once after that."""
    await box.wait(1)
    if box.items and box.items[0] is None:
        box.items.pop(0)
        await box.wait(1, _GRACE_SECONDS)
    if box.over and box.fault is not None:
        raise box.fault


async def _ready(box: _Box, flushed: float) -> None:
    """Waits for something to write, or 15 s.

    Soon after the last write it waits for more to come, so that a busy stream costs a hundred writes a second and not one per event.
    """
    await box.wait(1, KEEP_ALIVE_SECONDS)
    early = flushed + FLUSH_SECONDS - time.monotonic()
    if early > 0:
        await box.wait(_BATCH, early)
