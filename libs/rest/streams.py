"""Server streams as SSE or newline JSON: what is ready goes out in one write, silence is filled with keep-alives."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from libs.faults import Fault
from libs.rest import errors
from libs.rest.encode import to_json
from libs.rpc.batches import each

KEEP_ALIVE_SECONDS = 15.0
FLUSH_SECONDS = 0.01  # at least that long between two writes of a busy stream; a lone event goes out at once
_GRACE_SECONDS = 0.25  # an answer that fails at once is an HTTP error, not a stream with an error in it
_WAITING = 256  # items between the call and the client's socket; a full queue holds the call back
_BATCH = 100
_RESUME = "resume_token"
Encode = Callable[[Message], bytes]


@dataclass(frozen=True, slots=True)
class Form:
    """How items and faults look on the wire."""

    item: Callable[[Message, bytes], bytes]  # of a message and its JSON
    fault: Callable[[Fault, str], bytes]  # of a fault and the id of the request
    keep_alive: bytes


def _sse(message: Message, text: bytes) -> bytes:
    """One event; JSON of ours holds no line breaks. A resume token is its id, which an EventSource sends back."""
    token = getattr(message, _RESUME, "")
    return (f"id: {token}\n".encode() if token else b"") + b"data: " + text + b"\n\n"


SSE_FORM = Form(_sse, lambda fault, id_: b"event: error\ndata: " + errors.answer(fault, id_)[2] + b"\n\n", b": keep-alive\n\n")
NDJSON_FORM = Form(lambda _message, text: text + b"\n", lambda fault, id_: errors.answer(fault, id_)[2] + b"\n", b"\n")


@dataclass(frozen=True, slots=True)
class _End:
    """The stream is over, perhaps by a fault."""

    fault: Fault | None


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
    queue: asyncio.Queue[Any] = asyncio.Queue(_WAITING)
    pump = asyncio.create_task(_pump(items, queue), name="rest stream")  # owned by this generator, which ends it
    try:
        first = await _first(queue)
        yield b""
        ended, flushed = False, 0.0
        while not ended:
            batch, ended = (first, _ends(first)) if first else await _batch(queue, flushed)
            first = []
            fault = batch.pop().fault if ended else None
            framed = [_framed(item, response_class, form, encode) for item in batch]
            if fault is not None:
                framed.append(form.fault(fault, request_id))
            yield b"".join(framed) or (b"" if ended else form.keep_alive)
            flushed = time.monotonic()
    finally:
        pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pump


async def _pump(items: AsyncGenerator[Any, None], queue: asyncio.Queue[Any]) -> None:
    fault: Fault | None = None
    try:
        async with aclosing(items):
            async for yielded in items:
                for item in each(yielded):
                    await queue.put(item)
    except Fault as error:
        fault = error
    await queue.put(_End(fault))


async def _first(queue: asyncio.Queue[Any]) -> list[Any]:
    """Waits until the call is let in; raises its fault; what came with it, perhaps nothing."""
    first = await queue.get()
    if first is None:
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                first = await queue.get()
        except TimeoutError:
            return []
    if isinstance(first, _End) and first.fault is not None:
        raise first.fault
    return [first]


async def _batch(queue: asyncio.Queue[Any], flushed: float) -> tuple[list[Any], bool]:
    """What is ready, or nothing after 15 s of silence; and whether the stream is over.

    Soon after the last write it waits for more to come, so that a busy stream costs a hundred writes a second and not one per event.
    """
    try:
        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
            batch = [await queue.get()]
    except TimeoutError:
        return [], False
    early = flushed + FLUSH_SECONDS - time.monotonic()
    if early > 0 and not _ends(batch):
        await asyncio.sleep(early)
    while len(batch) < _BATCH and not queue.empty():
        batch.append(queue.get_nowait())
    return batch, _ends(batch)


def _ends(batch: list[Any]) -> bool:
    return isinstance(batch[-1], _End)


def _framed(item: Any, response_class: type[Message], form: Form, encode: Encode) -> bytes:
    message = response_class.FromString(item) if isinstance(item, bytes) else item
    return form.item(message, encode(message))
