"""Batches: what many tasks want at the same time is done with one statement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")


class Batches(Generic[A, R]):
    """Collects items while a batch is under way, then does them together; nobody waits for a timer.

    Args:
        name: of the task.
        work: does a batch; a result for each item, in order. When it fails for several, each is done alone, so that one
            bad item harms no other.
        most: items of one batch.
    """

    def __init__(self, name: str, work: Callable[[list[A]], Awaitable[Sequence[R]]], *, most: int = 200) -> None:
        self._name = name
        self._work = work
        self._most = most
        self._waiting: deque[tuple[A, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: A) -> R:
        """The result for an item. Cancelling the wait does not undo the work."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self._name)
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                await self._do(batch)
        finally:
            self._task = None

    async def _do(self, batch: list[tuple[A, asyncio.Future[R]]]) -> None:
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 -- handed to who waits for it
            if len(batch) == 1:
                _fail(batch[0][1], error)
                return
            for one in batch:
                await self._do([one])
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


def _fail(future: asyncio.Future[R], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
