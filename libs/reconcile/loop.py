"""Loop: workers that run a reconcile function over a queue of keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from libs import log
from libs.faults import Fault
from libs.reconcile import metrics
from libs.reconcile.queue import Backoff, KeyedQueue
from libs.reconcile.result import Again, Result

_log = log.get(__name__)
DEADLINE = 30.0


class Loop:
    """Runs `reconcile(key)` for every key that is added, one worker per key.

    Args:
        name: for logs and metrics.
        reconcile: makes one key as wanted. A Fault or any other exception brings the key back later.
        workers: runs at a time.
        deadline: seconds one run may take.
        backoff: delays after failures.
        spacing: least seconds between two starts of one key.
    """

    def __init__(
        self, name: str, reconcile: Callable[[str], Awaitable[Result]], *,
        workers: int = 4, deadline: float = DEADLINE, backoff: Backoff | None = None, spacing: float = 0.1,
    ) -> None:  # fmt: skip
        self.name = name
        self._reconcile = reconcile
        self._workers = workers
        self._deadline = deadline
        self._queue = KeyedQueue(lambda: asyncio.get_running_loop().time(), backoff=backoff, spacing=spacing)
        self._wake = asyncio.Event()

    def add(self, key: str, after: float = 0.0) -> None:
        """Asks for a run of a key; call it from the event loop's thread."""
        self._queue.add(key, after)
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"reconcile {self.name} {number}")

    async def _work(self) -> None:
        while True:
            key = await self._next()
            metrics.WAITING.labels(self.name).set(len(self._queue))
            with metrics.SECONDS.labels(self.name).time():
                outcome = await self._once(key)
            metrics.RUNS.labels(self.name, outcome).inc()
            self._wake.set()

    async def _next(self) -> str:
        while True:
            key = self._queue.take()
            if key is not None:
                return key
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._queue.wait()):
                    await self._wake.wait()

    async def _once(self, key: str) -> str:
        try:
            async with asyncio.timeout(self._deadline):
                result = await self._reconcile(key)
        except Fault as fault:
            after = self._queue.failed(key, fault.retry_after.total_seconds() if fault.retry_after else 0.0)
            _log.warning(
                "reconcile.failed", reconciler=self.name, key=key, reason=fault.reason, problem=fault.message, after=round(after, 2)
            )
            return "fault"
        except asyncio.CancelledError:
            self._queue.failed(key)  # so that a Loop that runs again does not take the key for busy
            raise
        except Exception as error:  # noqa: BLE001 -- a mistake with one key must not stop the others
            after = self._queue.failed(key)
            _log.error("reconcile.crashed", reconciler=self.name, key=key, after=round(after, 2), exc_info=error)
            return "crash"
        if isinstance(result, Again):
            self._queue.again(key, result.after.total_seconds())
            return "again"
        self._queue.done(key)
        return "done"
