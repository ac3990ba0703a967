"""A server stream that outlives its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf.message import Message

from libs.client.retry import Retries, passing
from libs.faults import Code, Fault

Q = TypeVar("Q", bound=Message)
_TOKEN = "resume_token"  # noqa: S105 -- a field's name
_WORKED = 5.0  # seconds after which a stream counts as having worked, so that waits start anew


async def resumed(
    method: Callable[..., Any], request: Q, retries: Retries, *, lost: Callable[[Fault], None] | None = None
) -> AsyncGenerator[Any, None]:
    """Items of a server stream, which is opened again after an outage until it ends by itself; the request stays as it is.

    Where the items carry a `resume_token`, it goes on behind the last one that was handed out; without one it starts
    afresh, and the first items tell the state. Raises the Fault of what no waiting mends.

    Args:
        method: a stub's streaming method.
        request: what to stream.
        retries: the waits.
        lost: told of each outage.
    """
    ask, attempt, loop = type(request)(), 0, asyncio.get_running_loop()
    ask.CopyFrom(request)
    while True:
        opened = loop.time()
        try:
            async with aclosing(method(ask)) as items:
                async for item in items:
                    yield item
                    _remember(ask, item)
        except Fault as fault:
            if not passing(fault) and fault.code is not Code.CANCELLED:  # a hub that goes down cancels what is open
                raise
            if lost is not None:
                lost(fault)
            attempt = 1 if loop.time() - opened > _WORKED else attempt + 1
            await asyncio.sleep(retries.pause(attempt, fault))
        else:
            return


def _remember(ask: Message, item: Message) -> None:
    token = getattr(item, _TOKEN, "")
    if token and _TOKEN in ask.DESCRIPTOR.fields_by_name:
        setattr(ask, _TOKEN, token)
