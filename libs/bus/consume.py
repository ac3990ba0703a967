"""Consumers that outlive the broker, the connection and their own server-side state. Pull only: the reader sets the pace."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from libs import log
from libs.bus.connection import Connection
from libs.bus.pull import Pull, interrupted, pulls
from libs.bus.received import Received, of
from libs.log import trace

_log = log.get("libs.bus.consume")
_WAIT = 5.0
_INACTIVE = 60.0  # seconds after which the broker forgets a reader that is gone
_REDELIVER = (1.0, 60.0)
_PENDING = 1000  # of all processes that share the work

Handler = Callable[[Received], Awaitable[None]]


class Rejected(Exception):
    """The message can never be handled: it is put away, with a line in the log, and not delivered again."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A durable consumer whose work is shared."""

    stream: str
    durable: str
    subjects: tuple[str, ...]
    ack_wait: float
    batch: int

    def config(self) -> ConsumerConfig:
        """As the client wants it."""
        return ConsumerConfig(
            durable_name=self.durable,
            filter_subjects=list(self.subjects) or None,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.ack_wait,
            max_ack_pending=_PENDING,
            max_deliver=-1,  # attempts are counted by who handles; a message that is passed over in silence is lost work
            deliver_policy=DeliverPolicy.ALL,
        )


async def shared(connection: Connection, shared: Shared, handler: Handler, concurrency: int) -> None:
    """Works off a durable consumer until cancelled."""
    slots = asyncio.Semaphore(concurrency)
    async with asyncio.TaskGroup() as handlers:
        async for pull in pulls(connection, shared.stream, shared.config()):
            with interrupted(shared.stream):
                while True:
                    await slots.acquire()
                    slots.release()
                    # one at a time: some wait here, in order; several at a time: none waits here whom another process could serve
                    wanted = shared.batch if concurrency == 1 else slots._value  # noqa: SLF001 -- free places, which it tells nowhere else
                    async for message in pull.request(wanted):
                        await slots.acquire()
                        work = _handle(message, handler, shared.ack_wait, slots)
                        if concurrency == 1:
                            await work
                        else:
                            handlers.create_task(work, name=f"handle {message.subject}")


async def ordered(
    connection: Connection, stream: str, subjects: tuple[str, ...], after: int | None, batch: int
) -> AsyncGenerator[Received, None]:
    """Reads a stream in order until closed; what was lost on the way is read again, what has left the stream is told as a gap."""
    last = after
    while True:
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE, inactive_threshold=_INACTIVE, mem_storage=True, num_replicas=1,
            filter_subjects=list(subjects) or None, max_deliver=1,
            deliver_policy=DeliverPolicy.NEW if last is None else DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=None if last is None else last + 1,
        )  # fmt: skip
        async with contextlib.aclosing(pulls(connection, stream, config)) as found:
            pull = await anext(found)
            first, newest = await _bounds(pull.client, stream)
            if last is None:
                last = newest
            elif first > last + 1 or newest < last:
                # what we had not read has left the stream, or the stream was made anew
                yield Received(gap=True)
                if newest < last:
                    last = newest
                    continue
            with interrupted(stream):
                async for received in _in_order(pull, batch):
                    last = received.sequence
                    yield received


async def _in_order(pull: Pull, batch: int) -> AsyncIterator[Received]:
    expected = 1
    while True:
        async for message in pull.request(batch):
            if message.metadata.sequence.consumer != expected:
                return  # one was lost on the way: start again behind the last that was read
            expected += 1
            yield of(message)


async def _bounds(client: Client, stream: str) -> tuple[int, int]:
    info = await _quietly(client.jetstream().stream_info(stream))
    return (info.state.first_seq, info.state.last_seq) if info else (0, 0)


async def _quietly(work: Awaitable[Any]) -> Any:
    with contextlib.suppress(NatsError, OSError, TimeoutError):
        async with asyncio.timeout(_WAIT):
            return await work
    return None


async def _handle(message: Any, handler: Handler, ack_wait: float, slots: asyncio.Semaphore) -> None:
    received = of(message)
    try:
        async with asyncio.TaskGroup() as group:
            alive = group.create_task(_extend(message, ack_wait), name="extend ack")
            try:
                with trace.span(f"{received.subject.rsplit('.', 1)[0]} process", parent=received.traceparent, kind=trace.SpanKind.CONSUMER):
                    end = await _run(received, handler)
            finally:
                alive.cancel()
        await _quietly(end(message))
    finally:
        slots.release()


async def _run(received: Received, handler: Handler) -> Callable[[Any], Awaitable[None]]:
    try:
        await handler(received)
    except Rejected as error:
        _log.error("message.rejected", subject=received.subject, id=received.id, reason=str(error))
        return lambda message: message.term()
    except Exception as error:  # noqa: BLE001 -- a handler's failure is told and the message comes again
        delay = min(_REDELIVER[0] * 2 ** min(received.delivered - 1, 10), _REDELIVER[1]) * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter
        _log.warning(
            "message.failed", subject=received.subject, id=received.id, delivered=received.delivered, again_in=delay, exc_info=error
        )
        return lambda message: message.nak(delay)
    return lambda message: message.ack()


async def _extend(message: Any, ack_wait: float) -> None:
    while True:
        await asyncio.sleep(ack_wait / 3)
        await _quietly(message.in_progress())
