"""Joins two streams: what comes on either goes out on the other, message ends, trailers, ends and resets as they are.

Credit is returned only for what the other side has taken, so back-pressure goes through, and a stuck reader holds here
what one window allows.
"""

from __future__ import annotations

import asyncio

from libs.tunnel.errors import Ended, Lost, Reset, StreamEnded, TooLarge
from libs.tunnel.stream import Stream


async def splice(near: Stream, far: Stream) -> None:
    """Passes on until both directions are over. When it is cancelled, `far` is broken off for the reason that `near` was."""
    up = asyncio.create_task(_pass(near, far), name=f"splice {near.id}")
    try:
        await _pass(far, near)
        await up
    except asyncio.CancelledError:
        up.cancel()
        far.reset(*_told(near.error))
        raise


async def _pass(source: Stream, target: Stream) -> None:
    while True:
        try:
            piece = await source.take()
        except StreamEnded as error:
            target.reset(*_told(error))
            return
        if piece is None:
            return
        try:
            await target.give(*piece)
        except StreamEnded as error:
            if isinstance(error, Ended) and error.code is Reset.DONE:
                source.stop_reading()  # the answer may still be on its way
            else:
                source.reset(*_told(error))
            return


def _told(error: StreamEnded | None) -> tuple[Reset, str]:
    """What the other side is told of an end."""
    if isinstance(error, Ended):
        return error.code, error.text
    if isinstance(error, Lost):
        return Reset.LOST, "the tunnel behind is gone"
    return (Reset.TOO_LARGE, "a message is too large") if isinstance(error, TooLarge) else (Reset.CANCELLED, "")
