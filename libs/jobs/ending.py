"""Ends of attempts: written together while the next ones gather, through a database that is away, one by one when one is bad."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from libs import log
from libs.faults import Fault
from libs.jobs import claims
from libs.jobs.claims import Outcome
from libs.jobs.domain import Reason, State
from libs.log import trace
from libs.pg import Database

_MOST = 500  # of one batch
_AGAIN_SECONDS, _REFUSED_SECONDS = 0.5, 0.1
_REFUSALS = 3  # times that an outcome is refused before it is taken for one that cannot be stored
_WRITE_SECONDS = 60.0  # an outcome is tried to be written for so long; after that the job has long been somebody else's
_log = log.get("libs.jobs")


@dataclass(eq=False, slots=True)
class End:
    """An outcome on its way.

    Attributes:
        told: called once with the job's state, or None when it was no longer ours or could not be written.
        lost: whether the job is known to be somebody else's.
        deadline: loop time after which it is given up.
        refused: how often the database refused it.
    """

    outcome: Outcome
    told: Callable[[Outcome, State | None], None]
    lost: Callable[[], bool]
    deadline: float
    refused: int = 0


@dataclass(eq=False, slots=True)
class Ending:
    """Writes outcomes.

    Attributes:
        database: where to.
    """

    database: Database
    _waiting: deque[End] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None

    def add(self, outcome: Outcome, told: Callable[[Outcome, State | None], None], lost: Callable[[], bool]) -> None:
        """Takes an outcome; it is written whatever becomes of who brought it."""
        self._waiting.append(End(outcome, told, lost, asyncio.get_running_loop().time() + _WRITE_SECONDS))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="finish jobs")

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
                pause = await self._write(batch)
                await asyncio.sleep(pause)
        finally:
            self._task = None

    async def _write(self, batch: list[End]) -> float:
        """Writes them together, or else each alone. Seconds to wait before the next."""
        parents = {end.outcome.report.job.traceparent for end in batch}
        try:
            with trace.carry(parents.pop() if len(parents) == 1 else ""):
                async with self.database.transaction() as tx:
                    states = await claims.finish(tx, [end.outcome for end in batch])
        except Fault as fault:
            self._later(batch, fault)
            return _AGAIN_SECONDS
        except Exception as error:  # noqa: BLE001 -- what cannot be stored is an end too: one that can be stored
            if len(batch) == 1:
                self._refused(batch[0], error)
                return _REFUSED_SECONDS
            pause = 0.0
            for end in batch:
                if pause < _AGAIN_SECONDS:
                    pause = max(pause, await self._write([end]))
                else:
                    self._waiting.append(end)
            return pause
        for end in batch:
            end.told(end.outcome, states.get(end.outcome.report.job.id))
        return 0.0

    def _later(self, batch: list[End], fault: Fault) -> None:
        now = asyncio.get_running_loop().time()
        for end in batch:
            if now > end.deadline or end.lost():
                job = end.outcome.report.job
                _log.error("job.outcome_lost", job=job.name, state=end.outcome.state.value, error=str(fault))
                end.told(end.outcome, None)
            else:
                self._waiting.append(end)

    def _refused(self, end: End, error: Exception) -> None:
        job = end.outcome.report.job
        end.refused += 1
        _log.error("job.outcome_refused", job=job.name, exc_info=error)
        if end.refused >= 2 * _REFUSALS:  # nor is what says so
            end.told(end.outcome, None)
            return
        if end.refused >= _REFUSALS:
            why = "its outcome could not be stored"
            end.outcome = Outcome(report=claims.Report(job), state=State.FAILED, error=why, reason=Reason.NOT_RETRYABLE)
        self._waiting.append(end)
