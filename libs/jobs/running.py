"""A job that a runner holds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from libs.jobs.context import Context
from libs.jobs.kind import Kind


@dataclass(eq=False, slots=True)
class Running:
    """A job that we hold.

    Attributes:
        stop: why its task is to stop: `cancel`, `drain`, `late`, `lost`; empty while it runs.
        asked: loop time at which it was asked to stop.
        begun: loop time at which it began.
        entered: its task has begun; one that is cancelled before never would, and could not tell its end.
        ending: its outcome is on its way.
        ended: for who waits for its end.
    """

    context: Context
    kind: Kind
    begun: float
    task: asyncio.Task[None] | None = None
    stop: str = ""
    asked: float = 0.0
    entered: bool = False
    ending: bool = False
    ended: list[asyncio.Future[None]] = field(default_factory=list)

    def ask(self, why: str, now: float) -> None:
        """Stops the task, once; a lost lease goes over everything else."""
        if self.stop and why != "lost":
            return
        self.stop, self.asked = why, self.asked or now
        self.context.cancel_requested = self.context.cancel_requested or why == "cancel"
        if self.task is not None and self.entered:
            self.task.cancel()

    def end(self) -> asyncio.Future[None]:
        """Done when the job is no longer ours."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended.append(future)
        return future
