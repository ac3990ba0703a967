"""Tells of clusters that came and went: the latest state of each, again until it is taken; one that is not taken holds up no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from libs import log

OnChange = Callable[[str, bool, str, int], Awaitable[None]]
_RETRY_SECONDS = 1.0
_TELL_SECONDS = 10.0
_log = log.get("services.gateway.link")


class Announcer:
    """Calls `on_change(uid, online, version, number of the tunnel)` from one task; only the latest state of a cluster is kept."""

    def __init__(self, on_change: OnChange) -> None:
        self._on_change = on_change
        self._pending: dict[str, tuple[bool, str, int]] = {}
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to tell."""
        self._task = asyncio.create_task(self._run(), name="link announcer")

    def tell(self, uid: str, version: str, number: int, *, online: bool) -> None:
        """Notes a change."""
        self._pending.pop(uid, None)
        self._pending[uid] = (online, version, number)
        self._some.set()

    async def close(self) -> None:
        """Tells what is left, for a moment at most, and ends."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_SECONDS):
                    while self._pending and await self._tell_next():
                        pass

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            if not self._pending:
                self._some.clear()
            elif not await self._tell_next():
                await asyncio.sleep(_RETRY_SECONDS)

    async def _tell_next(self) -> bool:
        uid, state = next(iter(self._pending.items()))
        try:
            async with asyncio.timeout(_TELL_SECONDS):
                await self._on_change(uid, *state)
        except Exception as error:  # noqa: BLE001 -- whatever keeps the news from being taken, they are told again
            _log.warning("link.change_not_taken", cluster_uid=uid, online=state[0], cause=repr(error))
            self._pending[uid] = self._pending.pop(uid)
            return False
        if self._pending.get(uid) == state:
            del self._pending[uid]
        return True
