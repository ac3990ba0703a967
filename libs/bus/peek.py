"""Looking into a stream without a consumer: what a work queue holds, for who compares it with the truth."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import orjson
from nats.aio.client import Client
from nats.js.errors import APIError

_BATCH = 500
_ENDED = ("204", "404", "408")
_NO_MESSAGE = 10057  # the sequence is not there


async def peek(client: Client, stream: str, limit: int) -> dict[int, bytes]:
    """Messages by sequence, the oldest first, at most `limit`."""
    found: dict[int, bytes] = {}
    start = 1
    while len(found) < limit:
        part = await _batch(client, stream, start)
        if not part:
            break
        found |= part
        start = max(part) + 1
    return found


async def _batch(client: Client, stream: str, start: int) -> dict[int, bytes]:
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    found: dict[int, bytes] = {}
    try:
        await client.publish(
            f"$JS.API.DIRECT.GET.{stream}", orjson.dumps({"seq": start, "batch": _BATCH, "next_by_subj": ">"}), reply=inbox
        )
        while True:
            message: Any = await subscription.next_msg(timeout=5)
            headers = message.headers or {}
            if headers.get("Status", "") in _ENDED:
                return found
            found[int(headers["Nats-Sequence"])] = message.data
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(subscription.unsubscribe(), 1)


async def remove(client: Client, stream: str, sequence: int) -> None:
    """Deletes one message."""
    try:
        await client.jetstream().delete_msg(stream, sequence)
    except APIError as error:
        if error.err_code != _NO_MESSAGE and error.code != 404:  # noqa: PLR2004 -- HTTP's
            raise
