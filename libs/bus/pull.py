"""Pulling from JetStream: one request at a time, messages as they come, silence noticed.

The client's own `fetch` waits for a whole batch and cannot tell a quiet stream from a dead consumer (nats.py #504, #709);
here the broker's idle heartbeats can.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import orjson
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import ConsumerConfig

from libs import log
from libs.bus.connection import Connection
from libs.faults import Unavailable

_log = log.get("libs.bus.pull")
_EXPIRES = 30.0  # seconds of one request
_HEARTBEAT = 3.0  # seconds after which the broker speaks in any case
_SILENCE = 8.0  # seconds after which it is taken for dead: two heartbeats missed
_CREATE = 10.0
_BACKOFF = (0.2, 5.0)
_NANO = 1_000_000_000
_ENDED = ("404", "408")  # no messages, request expired
_STILL_THERE = ("Batch Completed", "Message Size Exceeds MaxBytes", "Exceeded MaxWaiting", "Exceeded MaxRequestBatch")


class Gone(Exception):
    """The consumer or its stream is no more."""


class Pull:
    """Requests messages of one consumer over one connection."""

    def __init__(self, connection: Connection, client: Client, subject: str) -> None:
        self.client = client
        self._connection = connection
        self._subject = subject
        self._inbox = client.new_inbox()
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()  # bounded by what is requested
        self._subscription: Any = None

    async def open(self) -> None:
        """Listens for answers."""
        self._subscription = await self.client.subscribe(self._inbox, cb=self._waiting.put)

    async def close(self) -> None:
        """Stops listening."""
        if self._subscription is not None and self.client.is_connected:
            with contextlib.suppress(NatsError, OSError):
                await self._subscription.unsubscribe()

    async def request(self, batch: int) -> AsyncIterator[Any]:
        """As `pages`, one by one."""
        async for page in self.pages(batch):
            for message in page:
                yield message

    async def pages(self, batch: int) -> AsyncIterator[list[Any]]:
        """Up to `batch` messages as they come, those that are there together; ends earlier when the request expires.

        Raises Gone when the consumer is no more, Unavailable when the broker is silent or away.
        """
        body = {"batch": batch, "expires": int(_EXPIRES * _NANO), "idle_heartbeat": int(_HEARTBEAT * _NANO)}
        async with self._connection.deadline(_HEARTBEAT):
            await self.client.publish(self._subject, orjson.dumps(body), reply=self._inbox)
        while batch:
            if self._waiting.empty():
                async with self._connection.deadline(_SILENCE):
                    message = await self._waiting.get()
            else:
                message = self._waiting.get_nowait()
            page, end = self._page(message, batch)
            batch -= len(page)
            if page:
                yield page
            if isinstance(end, Gone):
                raise end
            if end:
                return

    def _page(self, message: Any, most: int) -> tuple[list[Any], bool | Gone]:
        """A message and those that wait behind it; and whether the broker has ended the request."""
        page = []
        while True:
            status = "" if message.reply else (message.headers or {}).get("Status", "")
            if not status:
                page.append(message)
            elif status != "100":
                description = (message.headers or {}).get("Description", "")
                gone = status not in _ENDED and description not in _STILL_THERE
                return page, Gone(f"{status} {description}") if gone else True
            if len(page) == most or self._waiting.empty():
                return page, False
            message = self._waiting.get_nowait()


async def pulls(connection: Connection, stream: str, config: ConsumerConfig) -> AsyncGenerator[Pull, None]:
    """Makes the consumer and binds to it, again each time the next one is asked for."""
    delay = _BACKOFF[0]
    while True:
        client = await connection.client(None)
        try:
            async with connection.deadline(_CREATE):
                info = await client.jetstream().add_consumer(stream, config)
            pull = Pull(connection, client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{info.name}")
            await pull.open()
        except (Unavailable, NatsError, OSError) as error:
            _log.warning("consume.failed", stream=stream, consumer=config.durable_name, error=repr(error))
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter
            delay = min(delay * 2, _BACKOFF[1])
            continue
        delay = _BACKOFF[0]
        try:
            yield pull
        finally:
            await pull.close()


@contextlib.contextmanager
def interrupted(stream: str) -> Iterator[None]:
    """Takes what ends a pull for what it is: a reason to make a new one."""
    try:
        yield
    except (Gone, Unavailable, NatsError, OSError) as error:
        _log.info("consume.interrupted", stream=stream, error=repr(error))
