"""What a handler gets: the job, a pen for progress and log, and transactions that only the job's holder can commit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from libs.jobs import claims, rows
from libs.jobs.claims import Report
from libs.jobs.domain import Job, LeaseLost
from libs.pg import Database, Tx

Effect = Callable[[Tx], Awaitable[None]]
TAIL_LINES = 50
LINE_CHARACTERS = 300


class Context:
    """One attempt, as its handler sees it.

    A cancel, the end of the attempt's time and a stop of the process come as CancelledError at the handler's next await:
    clean up in `finally`, quickly, and let it pass.

    Attributes:
        job: the job as it was claimed; `job.fence` can be passed on to what checks fences.
        results: JSON results of the steps done before, by name.
        cancel_requested: a user wants it to stop.
        dirty: there is progress that is not written yet; the engine's.
    """

    def __init__(self, job: Job, database: Database) -> None:
        self.job = job
        self.results: dict[str, Any] = {}
        self.cancel_requested = False
        self.report = Report(job, percent=job.percent, message=job.message, step=job.step, log=list(job.log))
        self._database = database
        self.dirty = False
        self._effects: list[Effect] = []

    def progress(self, percent: int, message: str) -> None:
        """Tells how far it is: percent (0 to 100) and a sentence for people. Written within a fraction of a second."""
        self.report.percent = max(0, min(percent, 100))
        self.report.message = rows.storable(message)[:500]
        self.dirty = True

    def log(self, line: str) -> None:
        """Adds a line to the log, whose last 50 lines are kept and streamed. No secrets."""
        for part in rows.storable(line).splitlines() or [""]:
            self.report.log.append(part[:LINE_CHARACTERS])
            self.report.new_lines.append(part[:LINE_CHARACTERS])
        del self.report.log[:-TAIL_LINES]
        del self.report.new_lines[:-TAIL_LINES]
        self.dirty = True

    def effect(self, work: Effect) -> None:
        """Does something in PostgreSQL in the transaction that ends the step or the job well: exactly once, or not at all."""
        self._effects.append(work)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """A transaction that commits only while the job is ours. The attempt may still fail later and run it again.

        Raises LeaseLost when somebody else holds the job.
        """
        async with self._database.transaction() as tx:
            if not await claims.holds(tx, self.job):
                raise LeaseLost
            yield tx

    async def settle(self, tx: Tx) -> bool:
        """Does the effects, in the engine's own transaction; whether there were any."""
        done, self._effects = self._effects, []
        for work in done:
            await work(tx)
        return bool(done)

    @property
    def has_effects(self) -> bool:
        """Whether something is to be done with the outcome."""
        return bool(self._effects)

    def enter(self, step: str) -> None:
        """A step begins."""
        self.report.step = step
        self.dirty = True

    def take_report(self) -> Report:
        """How far it is and the lines since last time; the engine's."""
        report = self.report
        taken = Report(report.job, report.percent, report.message, report.step, list(report.log), report.new_lines)
        report.new_lines, self.dirty = [], False
        return taken

    def give_back(self, report: Report) -> None:
        """What was taken was not written."""
        self.report.new_lines[:0] = report.new_lines
        del self.report.new_lines[:-TAIL_LINES]
        self.dirty = True
