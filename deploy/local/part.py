"""A part of the stack: what it is called, how it is made, run, and known to be ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from deploy.local.errors import LocalError
from deploy.local.process import Command, Process, last_line


async def nothing() -> None:
    """Nothing to prepare."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack.

    Attributes:
        name: what people call it.
        command: makes its command line, asked at every start.
        ready: returns once it serves; the starter holds the deadline.
        prepare: makes what it needs before its first start.
        within: seconds from start to ready.
    """

    name: str
    command: Callable[[], Command]
    ready: Callable[[], Awaitable[None]]
    prepare: Callable[[], Awaitable[None]] = nothing
    within: float = 60.0


async def start(part: Part, started: Callable[[Process], None] = lambda _: None) -> Process:
    """Starts a part and waits until it serves; raises LocalError in one line, and leaves nothing, when it does not.

    Args:
        part: what to start.
        started: told the process as soon as there is one.
    """
    command = part.command()
    process = await Process.start(command)
    started(process)
    ready = asyncio.ensure_future(part.ready())
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({ready, ended}, timeout=part.within, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            return process
        if ended.done():
            raise LocalError(f"{part.name} ended with code {ended.result()} while starting: {last_line(command.log)}; see {command.log}")
        raise LocalError(f"{part.name} was not ready within {part.within:.0f} s: {last_line(command.log)}; see {command.log}")
    finally:
        serves = ready.done() and not ready.cancelled() and ready.exception() is None
        for task in (ready, ended):
            task.cancel()
        await asyncio.gather(ready, ended, return_exceptions=True)
        if not serves:
            await process.stop()


@contextlib.asynccontextmanager
async def running(part: Part) -> AsyncIterator[Process]:
    """Runs a part, unsupervised, for the length of a block; for tests."""
    await part.prepare()
    process = await start(part)
    try:
        yield process
    finally:
        await process.stop()


async def until_open(port: int, *, every: float = 0.05) -> None:
    """Waits until something listens on a port of 127.0.0.1."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(every)
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return
