"""Keeps parts running: starts them, restarts what crashes with a growing, jittered pause, stops them in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.local.errors import LocalError
from deploy.local.part import Part, start
from deploy.local.process import Process, last_line

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds
_STEADY = 60.0  # seconds after which a crash counts as the first again
_GIVE_UP = 12  # crashes in a row


@dataclass(slots=True)
class Kept:
    """A part that is kept running."""

    part: Part
    process: Process | None = None
    state: str = "starting"
    crashes: int = 0
    ready_at: float = 0.0
    watch: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Its process id, while it has one."""
        return self.process.pid if self.process and self.process.code is None else None


class Supervisor:
    """Owns the processes of one stack.

    Args:
        say: tells people one line.
        changed: called whenever a part's state or pid changed.
    """

    def __init__(self, say: Callable[[str], None], changed: Callable[[], None] = lambda: None) -> None:
        self._say = say
        self._changed = changed
        self._layers: list[list[Kept]] = []
        self._stopping = False
        self.failed: asyncio.Future[LocalError] = asyncio.get_running_loop().create_future()

    @property
    def kept(self) -> dict[str, Kept]:
        """All parts by name."""
        return {kept.part.name: kept for layer in self._layers for kept in layer}

    async def start(self, *parts: Part) -> None:
        """Starts parts side by side and returns when all serve; raises LocalError. They are stopped before earlier ones."""
        layer = [Kept(part) for part in parts]
        self._layers.append(layer)
        starting = [asyncio.create_task(self._first(kept), name=f"start {kept.part.name}") for kept in layer]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def stop(self) -> None:
        """Stops all, the last started first; parts of one layer side by side."""
        self._stopping = True
        for layer in reversed(self._layers):
            await asyncio.gather(*(self._end(kept) for kept in layer))
        self._layers.clear()

    def kill(self) -> None:
        """Ends all at once."""
        self._stopping = True
        for kept in self.kept.values():
            if kept.process:
                kept.process.kill()

    async def _first(self, kept: Kept) -> None:
        since = time.monotonic()
        await kept.part.prepare()
        await self._start(kept)
        kept.watch = asyncio.create_task(self._watch(kept), name=f"watch {kept.part.name}")
        self._say(f"{kept.part.name} is ready ({time.monotonic() - since:.1f} s)")

    async def _start(self, kept: Kept) -> None:
        def started(process: Process) -> None:
            kept.process = process
            self._changed()

        kept.state = "starting"
        await start(kept.part, started)
        kept.state, kept.ready_at = "ready", time.monotonic()
        self._changed()

    async def _watch(self, kept: Kept) -> None:
        """Restarts a part whenever it ends, until we stop or it will not run."""
        while kept.process:
            code = await kept.process.wait()
            if self._stopping:
                return
            kept.state = "crashed"
            self._changed()
            log = kept.part.command().log
            self._say(f"{kept.part.name} {_ended(code)}: {last_line(log)}; see {log}; restarting it")
            if not await self._restart(kept):
                return

    async def _restart(self, kept: Kept) -> bool:
        while not self._stopping:
            kept.crashes = 1 if time.monotonic() - kept.ready_at > _STEADY else kept.crashes + 1
            if kept.crashes > _GIVE_UP:
                return self._give_up(LocalError(f"{kept.part.name} crashed {_GIVE_UP} times in a row; see {kept.part.command().log}"))
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (kept.crashes - 1))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter
            since = time.monotonic()
            try:
                await self._start(kept)
            except LocalError as error:
                self._say(f"{error}; trying again")
                continue
            self._say(f"{kept.part.name} is back ({time.monotonic() - since:.1f} s)")
            return True
        return False

    def _give_up(self, error: LocalError) -> bool:
        if not self.failed.done():
            self.failed.set_result(error)
        return False

    async def _end(self, kept: Kept) -> None:
        if kept.watch:
            kept.watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await kept.watch
        if kept.process:
            await kept.process.stop()
        kept.state = "stopped"
        self._changed()


def _ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
