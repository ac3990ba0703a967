"""Tickets: messages of a work queue that are answered as soon as their claim is decided elsewhere, a page at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from libs.bus.connection import Connection
from libs.bus.pull import interrupted, pulls

_PENDING = 5000  # of all processes that share the work


@dataclass(slots=True)
class Ticket:
    """A message. An answer that gets lost costs nothing but that the message comes again."""

    data: bytes
    _message: Any

    async def ack(self) -> None:
        """Done with it."""
        await self._answer(b"+ACK")

    async def again(self, seconds: float) -> None:
        """Not now: deliver it again after a while."""
        await self._answer(b'-NAK {"delay": %d}' % int(seconds * 1e9))

    async def term(self) -> None:
        """Never again."""
        await self._answer(b"+TERM")

    async def _answer(self, word: bytes) -> None:
        with contextlib.suppress(NatsError, OSError):
            await self._message._client.publish(self._message.reply, word)  # noqa: SLF001 -- the connection that it came over


async def tickets(
    connection: Connection, stream: str, durable: str, room: Callable[[], Awaitable[int]], ack_wait: float
) -> AsyncGenerator[list[Ticket], None]:
    """Messages as they come, all that are there in one page, never more than there is room for; through every outage."""
    config = ConsumerConfig(
        durable_name=durable, ack_policy=AckPolicy.EXPLICIT, ack_wait=ack_wait, max_ack_pending=_PENDING, max_deliver=-1,
        deliver_policy=DeliverPolicy.ALL,
    )  # fmt: skip
    async for pull in pulls(connection, stream, config):
        with interrupted(stream):
            while True:
                async for page in pull.pages(await room()):
                    yield [Ticket(message.data, message) for message in page]
