"""Publishing, streams and hints over one kept connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from nats.errors import BadSubjectError, MaxPayloadError
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from libs import log
from libs.bus import consume as consuming
from libs.bus.connection import Address, Connection, Tls, flushed
from libs.bus.peek import peek, remove
from libs.bus.received import Received, headers, of
from libs.bus.streams import Stream
from libs.bus.tickets import Ticket, tickets
from libs.faults import Invalid, Unavailable
from libs.log import trace

_log = log.get("libs.bus")
_FULL = (10077, 10023, 10047)  # the stream's or account's bytes, messages or memory are used up
_TOO_BIG = 10054
_STORE_RACE = 10049  # creating a stream right after deleting the last one; the server asks to be asked again
_DEADLINE = 5.0


class Full(Unavailable):
    """The stream takes no more just now; what is in it must be worked off first."""

    reason = "STREAM_FULL"


@dataclass(frozen=True, slots=True)
class ConsumerReport:
    """A lasting consumer: messages that wait for it, are being handled, and came more than once."""

    name: str
    waiting: int
    handling: int
    repeated: int


@dataclass(frozen=True, slots=True)
class StreamReport:
    """A stream: messages and bytes in it, the most bytes, readers that pass, how far the last of them is behind, and lasting consumers."""

    name: str
    messages: int
    bytes: int
    most_bytes: int
    readers: int
    behind: int
    consumers: tuple[ConsumerReport, ...]


class Bus:
    """The process's connection to NATS."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        tls: Tls | None = None,
        nkey_seed_file: Path | None = None,
        inbox_prefix: str = "_INBOX",
        patience: float = 5.0,
        server_name: str = "",
    ) -> Bus:
        """A bus that connects and stays connected; it comes back after `patience` seconds even when the broker is away.

        Args:
            url: `tls://host:port`.
            name: what the broker shows, such as the service's name.
            tls: (certificate, key, CA) files.
            nkey_seed_file: a hub service's seed; an agent has none.
            inbox_prefix: an agent's is `subjects.inbox(uid)`.
            patience: seconds to wait for the first connection.
            server_name: what the broker's certificate must name, where it is reached by another name; empty: the URL's host.
        """
        bus = cls(Connection(Address(url, name, tls, nkey_seed_file, inbox_prefix, server_name)))
        with contextlib.suppress(Unavailable):
            await bus._connection.client(patience)
        return bus

    @property
    def connected(self) -> bool:
        """Whether the broker is there just now."""
        return self._connection.connected

    async def close(self) -> None:
        """Sends what is under way and disconnects."""
        await self._connection.close()

    async def publish(self, subject: str, message: Message, *, id: str = "", timeout: float = _DEADLINE) -> int:  # noqa: A002 -- reads `id=`
        """Publishes into a stream and waits until it is stored; its sequence there.

        Args:
            subject: made by `subjects`.
            message: the payload.
            id: repeats with the same id within the stream's window are stored once.
            timeout: seconds for connection and ack together.

        Raises:
            Full: the stream refuses more.
            Invalid: the stream will never take it: too large.
            Unavailable: not known to be stored; publish again with the same id.
        """
        return await self.publish_bytes(
            subject, message.SerializeToString(), type_=message.DESCRIPTOR.full_name, id_=id, traceparent=trace.traceparent(),
            seconds=timeout,
        )  # fmt: skip

    async def publish_bytes(
        self, subject: str, payload: bytes, *, type_: str, id_: str = "", traceparent: str = "", seconds: float = _DEADLINE
    ) -> int:
        """As `publish`, for a message that is encoded already."""
        client = await self._connection.client(seconds)
        try:
            async with self._connection.deadline(seconds):
                ack = await client.jetstream().publish(subject, payload, timeout=seconds * 2, headers=headers(type_, id_, traceparent))
        except NoStreamResponseError as error:
            raise Unavailable(f"no stream takes {subject}", {"subject": subject}) from error
        except APIError as error:
            if error.err_code in _FULL:
                raise Full(f"the stream of {subject} is full", {"subject": subject}) from error
            if error.err_code == _TOO_BIG:
                raise Invalid(f"{len(payload)} bytes are too many for the stream of {subject}", {"subject": subject}) from error
            raise Unavailable(f"{subject} was refused: {error.description}", {"subject": subject}) from error
        except (BadSubjectError, MaxPayloadError) as error:
            raise Invalid(f"{subject!r}, {len(payload)} bytes: {error}", {"subject": subject}) from error
        return ack.seq

    async def hint(self, subject: str, message: Message, *, timeout: float = 1.0) -> None:
        """Tells whoever listens just now; nothing keeps it. Unavailable when the broker is away."""
        await self.hint_bytes(
            subject, message.SerializeToString(), type_=message.DESCRIPTOR.full_name, traceparent=trace.traceparent(), seconds=timeout
        )

    async def hint_bytes(self, subject: str, payload: bytes, *, type_: str, id_: str = "", traceparent: str = "", seconds: float) -> None:
        """As `hint`, for a message that is encoded already."""
        client = await self._connection.client(seconds)
        async with self._connection.deadline(seconds):
            await client.publish(subject, payload, headers=headers(type_, id_, traceparent))

    async def hints(self, messages: Iterable[tuple[str, bytes]], *, type_: str, seconds: float) -> None:
        """As `hint_bytes` for many (subject, payload) of one type, in order, within one deadline."""
        client, told = await self._connection.client(seconds), headers(type_, "", "")
        async with self._connection.deadline(seconds):
            for subject, payload in messages:
                await client.publish(subject, payload, headers=told)

    async def flush(self, seconds: float = _DEADLINE) -> None:
        """Returns when the broker has taken all hints sent before; Unavailable otherwise."""
        client = await self._connection.client(seconds)
        async with self._connection.deadline(seconds):
            await flushed(client)

    async def reply(self, received: Received, payload: bytes) -> None:
        """Answers a request heard by `subscribe`."""
        client = await self._connection.client(1.0)
        async with self._connection.deadline(1.0):
            await client.publish(received.reply, payload)

    async def request(self, subject: str, payload: bytes, seconds: float = _DEADLINE) -> bytes:
        """Asks whoever answers on a subject; Unavailable when nobody does."""
        client = await self._connection.client(seconds)
        async with self._connection.deadline(seconds):
            return (await client.request(subject, payload, timeout=seconds * 2)).data

    async def subscribe(self, subject: str, *, queue: str = "", capacity: int = 1024) -> AsyncGenerator[Received, None]:
        """Hints as they come, through every outage; iterate for ever.

        Yields a Received with `gap` set whenever it (re)connects, the first time included, and when the reader was too
        slow for more than `capacity` messages: what came before may be missing.

        Args:
            subject: wildcards allowed.
            queue: subscribers of one queue group share the messages.
            capacity: messages that may wait for the reader.
        """
        waiting: asyncio.Queue[Received] = asyncio.Queue(capacity)

        async def heard(message: Any) -> None:
            if waiting.full():
                while not waiting.empty():
                    waiting.get_nowait()
                waiting.put_nowait(Received(gap=True))
            waiting.put_nowait(of(message))

        while True:
            client = await self._connection.client(None)
            try:
                subscription = await client.subscribe(subject, queue, cb=heard)
                async with self._connection.deadline(_DEADLINE):
                    await flushed(client)
            except (Unavailable, NatsError, OSError) as error:
                _log.warning("subscribe.failed", subject=subject, error=repr(error))
                await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 -- jitter
                continue
            lost: asyncio.Future[Any] = asyncio.ensure_future(self._connection.lost(client))
            try:
                yield Received(gap=True)
                async for received in _until(waiting, lost):
                    yield received
            finally:
                lost.cancel()
                if client.is_connected:
                    with contextlib.suppress(Exception):
                        await subscription.unsubscribe()

    async def ensure_stream(self, stream: Stream) -> None:
        """Makes a stream, or brings its limits up to date. Unavailable when the broker is away or refuses."""
        client = await self._connection.client(_DEADLINE)
        config = stream.config()
        with _refusals(stream.name):
            async with self._connection.deadline(_DEADLINE * 2):
                manager = client.jetstream()
                try:
                    known: StreamConfig | None = (await manager.stream_info(stream.name)).config
                except NotFoundError:
                    known = None
                if known is None:
                    await self._add(manager, config)
                elif any(getattr(known, name) != value for name, value in vars(config).items() if value is not None):
                    # the way of persisting is set for good when a stream is made
                    config.persist_mode = known.persist_mode
                    await manager.update_stream(config)

    async def _add(self, manager: Any, config: StreamConfig) -> None:
        try:
            await manager.add_stream(config)
        except APIError as error:
            if error.err_code != _STORE_RACE:
                raise
            await asyncio.sleep(0.2)
            await manager.add_stream(config)

    async def delete_stream(self, name: str) -> None:
        """Removes a stream with all in it; harmless when there is none."""
        client = await self._connection.client(_DEADLINE)
        with _refusals(name), contextlib.suppress(NotFoundError):
            async with self._connection.deadline(_DEADLINE):
                await client.jetstream().delete_stream(name)

    async def streams(self, prefix: str = "") -> list[str]:
        """Names of the streams that start with a prefix, sorted."""
        client = await self._connection.client(_DEADLINE)
        found: list[str] = []
        with _refusals("the list of streams"):
            async with self._connection.deadline(_DEADLINE * 2):
                while page := await client.jetstream().streams_info(offset=len(found)):
                    found += [str(info.config.name) for info in page]
        return sorted(name for name in found if name.startswith(prefix))

    async def report(self) -> list[StreamReport]:
        """Every stream as it stands, with its lasting consumers; for people who look what is wrong. Unavailable when the broker is away."""
        client = await self._connection.client(_DEADLINE)
        manager = client.jetstream()
        found = []
        for name in await self.streams():
            with _refusals(name):
                async with self._connection.deadline(_DEADLINE):
                    info = await manager.stream_info(name)
                    consumers = await manager.consumers_info(name)
            lasting = tuple(
                ConsumerReport(str(c.name), int(c.num_pending or 0), int(c.num_ack_pending or 0), int(c.num_redelivered or 0))
                for c in consumers
                if c.config.durable_name
            )
            passing = [int(c.num_pending or 0) for c in consumers if not c.config.durable_name]
            most, behind = int(info.config.max_bytes or 0), max(passing, default=0)
            found.append(StreamReport(name, info.state.messages, info.state.bytes, most, len(passing), behind, lasting))
        return found

    async def consume(
        self,
        stream: str,
        handler: Callable[[Received], Awaitable[None]],
        *,
        durable: str,
        subjects: Sequence[str] = (),
        concurrency: int = 1,
        ack_wait: float = 30.0,
        batch: int = 20,
    ) -> None:
        """Hands each message of a stream to `handler` until it succeeds; runs until cancelled. Spawn it as a task.

        A message is acknowledged when the handler returns, delivered again with growing delay when it fails, and put
        away for good when it raises `Rejected`. Handlers must be idempotent: tell repeats by `received.id`.

        Args:
            stream: its name.
            handler: async.
            durable: name under which the broker keeps the place; processes that share it share the work.
            subjects: only these; all when empty.
            concurrency: handlers at a time; with 1 a stream's order is kept, save for what is delivered again.
            ack_wait: seconds after which a message whose handler died is delivered again; a living one's is extended.
            batch: with `concurrency` 1, most messages fetched at once: `ack_wait` must cover the handling of all of them.
                With more none is fetched for whom no handler is free.
        """
        shared = consuming.Shared(stream, durable, tuple(subjects), ack_wait, batch)
        await consuming.shared(self._connection, shared, handler, concurrency)

    async def tickets(
        self, stream: str, *, durable: str, room: Callable[[], Awaitable[int]], ack_wait: float = 30.0
    ) -> AsyncGenerator[list[Ticket], None]:
        """A work queue's messages as they come, those that are there together, for the reader to answer each; iterate for ever.

        Args:
            stream: its name.
            durable: name under which the broker keeps the place; processes that share it share the work.
            room: how many to ask for next; waits until it is at least one.
            ack_wait: seconds after which an unanswered message is delivered again.
        """
        async with contextlib.aclosing(tickets(self._connection, stream, durable, room, ack_wait)) as source:
            async for page in source:
                yield page

    async def stored(self, stream: str, *, limit: int = 10_000) -> dict[int, bytes]:
        """What a stream holds just now, by sequence, the oldest first; nothing is taken. Unavailable when the broker is away."""
        client = await self._connection.client(_DEADLINE)
        with _refusals(stream):
            async with self._connection.deadline(_DEADLINE * 2):
                return await peek(client, stream, limit)

    async def remove(self, stream: str, sequence: int) -> None:
        """Takes one message out of a stream; harmless when it is gone."""
        client = await self._connection.client(_DEADLINE)
        with _refusals(stream):
            async with self._connection.deadline(_DEADLINE):
                await remove(client, stream, sequence)

    async def follow(
        self, stream: str, *, subjects: Sequence[str] = (), after: int | None = None, batch: int = 500
    ) -> AsyncGenerator[Received, None]:
        """A stream's messages in order, for this reader alone, without acks; iterate for ever.

        Yields a Received with `gap` set when messages were lost before the next one: they had left the stream.

        Args:
            stream: its name.
            subjects: only these; all when empty.
            after: sequence behind which to start; None for what comes from now on.
            batch: most messages fetched at once.
        """
        async with contextlib.aclosing(consuming.ordered(self._connection, stream, tuple(subjects), after, batch)) as source:
            async for received in source:
                yield received


@contextlib.contextmanager
def _refusals(stream: str) -> Iterator[None]:
    """The broker's own errors stay in here: nobody else knows its client."""
    try:
        yield
    except (APIError, NoStreamResponseError) as error:
        raise Unavailable(f"the message broker refused {stream}: {error}", {"stream": stream}) from error


async def _until(waiting: asyncio.Queue[Received], lost: asyncio.Future[Any]) -> AsyncIterator[Received]:
    """What waits in a queue, until it is empty and the future is done."""
    while True:
        if not waiting.empty():
            yield waiting.get_nowait()
            continue
        if lost.done():
            return
        getting: asyncio.Future[Any] = asyncio.ensure_future(waiting.get())
        await asyncio.wait([getting, lost], return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            yield getting.result()
        else:
            getting.cancel()
