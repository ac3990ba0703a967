"""Run: a service's life from start to stop.

`main("gateway", Config, start)` reads the configuration, sets logs and traces up, runs `start(config, life)` on uvloop
and waits for SIGTERM or SIGINT. `start` builds everything on `life.stack` (an AsyncExitStack), in order; what was
built is closed in reverse. A task given to `life.spawn` has a name and an owner: when one that should never end does,
the service stops with exit code 1 and says which. Stopping: health goes to NOT_SERVING, then the stack unwinds within
`drain_seconds`, then the process ends in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import uvloop

from libs import conf, log
from libs.log import trace

C = TypeVar("C")
_log = log.get("libs.run")
DRAIN_SECONDS = 20.0


class Life:
    """What a service's start gets: where to put clean-up, and who owns its tasks."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        self.stopping = asyncio.Event()
        self.failed: str | None = None
        self.on_drain: list[Callable[[], Awaitable[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, None], *, may_end: bool = False) -> asyncio.Task[None]:
        """Owns a task until the stack unwinds; one that must not end stops the service when it does."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled() or self.stopping.is_set() or (may_end and task.exception() is None):
                return
            error = task.exception()
            _log.error("task.ended", task=name, exc_info=error)
            self.failed = self.failed or f"task {name} ended: {error!r}"
            self.stopping.set()

        task.add_done_callback(ended)
        self.stack.push_async_callback(_cancelled, task)
        return task

    def stop(self) -> None:
        """Asks the service to stop."""
        self.stopping.set()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def main(service: str, config_class: type[C], start: Callable[[C, Life], Awaitable[None]]) -> None:
    """Runs a service until it is told to stop; exits with 0, 1 (a part failed) or 2 (bad configuration)."""
    config = conf.load(config_class, service)
    log.setup(service, level=os.environ.get("KUBEGEMS_LOG_LEVEL", "INFO"))
    code = uvloop.run(_serve(service, config, start))
    trace.shutdown()
    sys.stderr.flush()
    os._exit(code)  # a thread of a library must not hold the process back once all is drained


async def _serve(service: str, config: C, start: Callable[[C, Life], Awaitable[None]]) -> int:
    life = Life()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, life.stop)
    try:
        await _until_stopped(start(config, life), life)
        if not life.stopping.is_set():
            _log.info("service.started", name=service)
            await life.stopping.wait()
    except Exception as error:  # noqa: BLE001 -- the last place that can say why a service did not start
        _log.error("service.failed", name=service, exc_info=error)
        life.failed = repr(error)
    life.stopping.set()
    await _drain(service, life)
    return 1 if life.failed else 0


async def _until_stopped(starting: Awaitable[None], life: Life) -> None:
    start = asyncio.ensure_future(starting)
    stop = asyncio.create_task(life.stopping.wait(), name="stop signal")
    await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not start.done():
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        return
    start.result()


async def _drain(service: str, life: Life) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            for step in life.on_drain:
                await step()
            await life.stack.aclose()
    except Exception as error:  # noqa: BLE001 -- what fails while stopping is told, and stopping goes on
        _log.error("service.drain_failed", name=service, exc_info=error)
    _log.info("service.stopped", name=service, failed=life.failed)
