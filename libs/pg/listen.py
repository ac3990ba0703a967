"""LISTEN through outages: one connection for all channels of a process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from libs import log
from libs.faults import Fault

_log = log.get("libs.pg.listen")
_HEARTBEAT = 10.0  # seconds of silence after which the connection must prove that it lives
_BACKOFF = (0.1, 2.0)
_QUEUED = 10_000

Callback = Callable[[str], Awaitable[None] | None]


class Listener:
    """Keeps a connection that listens, and calls back. Payload `""` means: connected afresh, look for yourself."""

    def __init__(self, connect: Callable[[str], Awaitable[Any]]) -> None:
        self._connect = connect
        self._callbacks: dict[str, list[Callback]] = {}
        self._events: asyncio.Queue[tuple[str, str]] = asyncio.Queue(_QUEUED)
        self._changed = asyncio.Event()
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def add(self, channel: str, callback: Callback) -> None:
        """Adds a callback; returns when the channel is listened to, or after 5 s in any case: it will be, later."""
        self._callbacks.setdefault(channel, []).append(callback)
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._run(), name="pg listen"),
                asyncio.create_task(self._deliver(), name="pg listen deliver"),
            ]
        self._ready.clear()
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._ready.wait()

    async def close(self) -> None:
        """Stops listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        delay = _BACKOFF[0]
        while True:
            try:
                connection = await self._connect("listen")
            except (OSError, TimeoutError, Fault, asyncpg.PostgresError) as error:
                _log.warning("listen.away", error=repr(error))
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter
                delay = min(delay * 2, _BACKOFF[1])
                continue
            delay = _BACKOFF[0]
            try:
                await self._listen(connection)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.warning("listen.lost", error=repr(error))
            finally:
                connection.terminate()

    async def _listen(self, connection: Any) -> None:
        connection.add_termination_listener(lambda _connection: self._changed.set())
        listened: set[str] = set()
        while not connection.is_closed():
            self._changed.clear()
            for channel in self._callbacks.keys() - listened:
                await connection.add_listener(channel, self._heard)
                listened.add(channel)
                self._put(channel, "")
            if not self._changed.is_set():
                self._ready.set()
            try:
                async with asyncio.timeout(_HEARTBEAT):
                    await self._changed.wait()
            except TimeoutError:
                await connection.execute("select 1", timeout=_HEARTBEAT)

    def _heard(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        self._put(channel, str(payload))

    def _put(self, channel: str, payload: str) -> None:
        if self._events.full():
            # drop all that waits: one "look for yourself" per channel says the same
            while not self._events.empty():
                self._events.get_nowait()
            for name in self._callbacks:
                self._events.put_nowait((name, ""))
        else:
            self._events.put_nowait((channel, payload))

    async def _deliver(self) -> None:
        while True:
            channel, payload = await self._events.get()
            for callback in self._callbacks.get(channel, ()):
                try:
                    result = callback(payload)
                    if inspect.isawaitable(result):
                        await result
                except Exception as error:  # noqa: BLE001 -- one callback's mistake must not deafen the process
                    _log.error("listen.callback_failed", channel=channel, exc_info=error)
