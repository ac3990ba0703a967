"""Runner: takes messages of the work queue, claims in batches, runs handlers, writes outcomes under the fence.

A message is acknowledged once its claim is committed or refused: from then on the lease in PostgreSQL counts, not the
broker's patience. Messages doubled, late or lost change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.message import DecodeError

from kubegems.jobs.v1 import events_pb2
from libs import log
from libs.bus import Bus, streams
from libs.bus.tickets import Ticket as Letter
from libs.faults import Fault
from libs.jobs import claims, metrics
from libs.jobs.attempt import Allowed, Attempt, Done, given_back
from libs.jobs.batch import Batches
from libs.jobs.claims import Claimed, Outcome, Ticket
from libs.jobs.context import Context
from libs.jobs.domain import Job, Kind, LeaseLost, Reason, State
from libs.log import trace
from libs.pg import Database

LEASE = timedelta(seconds=15)
HEARTBEAT_SECONDS = 3.0
FLUSH_SECONDS = 0.2
DRAIN_SECONDS = 8.0
DURABLE = "workers"
_ACK_WAIT = 30.0
_REFUSALS = 3  # times that an outcome is refused before it is taken for one that cannot be stored
_WRITE_SECONDS = 60.0  # an outcome is tried to be written for so long; after that the job has long been somebody else's
_log = log.get("libs.jobs")


@dataclass(eq=False, slots=True)
class Running:
    """A job that we hold.

    Attributes:
        stop: why its task is cancelled: `cancel`, `drain`, `lost`; empty while it runs.
        asked: loop time at which it was asked to stop.
        begun: loop time at which it began.
    """

    context: Context
    kind: Kind
    begun: float
    task: asyncio.Task[None] | None = None
    stop: str = ""
    asked: float = 0.0

    def ask(self, why: str, now: float) -> None:
        """Cancels the task, once; a lost lease goes over everything else."""
        if self.stop and why != "lost":
            return
        self.stop, self.asked = why, self.asked or now
        self.context.cancel_requested = self.context.cancel_requested or why == "cancel"
        if self.task is not None:
            self.task.cancel()


class Runner:
    """Runs jobs of the kinds it knows.

    Args:
        allowed: (owner's user name, permission, target) → whether the owner still may; asked at every claim.
        worker: name of this process, for the log of claims.
        concurrency: jobs at a time.
        lease: until when a job is ours without a heartbeat.
        heartbeat: seconds between two.
        on_claimed: told after claims: there is room in the stream.
    """

    def __init__(
        self, database: Database, kinds: Mapping[str, Kind], *, allowed: Allowed, worker: str, concurrency: int = 16,
        lease: timedelta = LEASE, heartbeat: float = HEARTBEAT_SECONDS, on_claimed: Callable[[int], None] = lambda _n: None,
    ) -> None:  # fmt: skip
        self._database = database
        self._kinds = kinds
        self._known = sorted(kinds)
        self._allowed = allowed
        self._worker = worker
        self._concurrency = concurrency
        self._lease = lease
        self._heartbeat = heartbeat
        self._on_claimed = on_claimed
        self._running: dict[uuid.UUID, Running] = {}
        self._taken = 0  # messages whose claim is under way
        self._freed = asyncio.Event()
        self._draining = False
        self._claim = Batches("claim jobs", self._claim_batch)
        self._finish = Batches("finish jobs", self._finish_batch)

    @property
    def running(self) -> int:
        """Jobs that we hold."""
        return len(self._running)

    async def run(self, bus: Bus) -> None:
        """Works until cancelled; then use `drain`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(), name="job heartbeat")
            group.create_task(self._flush(), name="job progress")
            async with contextlib.aclosing(bus.tickets(streams.JOBS.name, durable=DURABLE, room=self._room, ack_wait=_ACK_WAIT)) as letters:
                async for letter in letters:
                    self._taken += 1
                    group.create_task(self._receive(letter), name="job message")

    async def _room(self) -> int:
        """How many messages to ask for; waits until it is at least one."""
        while (room := self._concurrency - len(self._running) - self._taken) < 1 or self._draining:
            self._freed.clear()
            await self._freed.wait()
        return room

    async def _receive(self, letter: Letter) -> None:
        try:
            ticket = _ticket(events_pb2.JobDispatch.FromString(letter.data))
        except (ValueError, DecodeError) as error:
            _log.error("job.message_rejected", error=str(error))
            self._taken -= 1
            await letter.term()
            return
        if self._draining:
            self._taken -= 1
            await letter.again(0)
            return
        try:
            claimed = await self._claim(ticket)
        except Exception as error:  # noqa: BLE001 -- the message comes again; whatever it is, the job waits in PostgreSQL
            _log.warning("job.claim_failed", job=str(ticket[0]), error=repr(error))
            await letter.again(1.0)
            return
        finally:
            self._taken -= 1
            self._freed.set()
        self._start(claimed)
        await letter.ack()

    async def handle(self, dispatch: events_pb2.JobDispatch) -> None:
        """Answers one message and waits for the end of the attempt; for who has no stream."""
        running = self._start(await self._claim(_ticket(dispatch)))
        if running is not None and running.task is not None:
            await asyncio.wait([running.task])

    async def _claim_batch(self, tickets: list[Ticket]) -> list[Claimed | None]:
        async with self._database.transaction() as tx:
            found = await claims.claim_all(tx, tickets, lease=self._lease, worker=self._worker, known=self._known)
        metrics.CLAIMS.inc(len(found))
        self._on_claimed(len(found))
        return [found.pop(ticket[0], None) for ticket in tickets]  # a message that came twice finds nothing the second time

    def _start(self, claimed: Claimed | None) -> Running | None:
        if claimed is None:
            return None
        job = claimed.job
        metrics.LAG.observe(claimed.lag)
        running = Running(Context(job, self._database), self._kinds[job.kind], asyncio.get_running_loop().time())
        self._running[job.id] = running
        running.task = asyncio.create_task(self._attempt(running), name=f"job {job.id}")
        return running

    async def _attempt(self, running: Running) -> None:
        job = running.context.job
        attributes: dict[str, str | int | bool] = {
            "job.id": str(job.id), "job.kind": job.kind, "job.target": job.target, "job.attempt": job.attempts, "job.fence": job.fence,
        }  # fmt: skip
        try:
            with trace.light(f"job {job.kind}", parent=job.traceparent, kind=trace.SpanKind.CONSUMER, attributes=attributes) as span:
                outcome = await self._outcome(running)
                if outcome is not None:
                    if outcome.error:
                        trace.fail(span, outcome.error)
                    await self._write(running, outcome)
        finally:
            self._running.pop(job.id, None)
            self._freed.set()

    async def _outcome(self, running: Running) -> Outcome | None:  # noqa: PLR0911 -- one line per way an attempt can end
        """None: there is nothing to write."""
        context, job = running.context, running.context.job
        attempt = Attempt(context, running.kind, self._database, self._allowed)
        try:
            if self._draining:
                return given_back(context, job)
            outcome = await attempt.run()
        except Done:
            self._told(job, State.SUCCEEDED, "")
            return None
        except LeaseLost:
            _log.info("job.lease_lost", job=job.name, fence=job.fence)
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            if running.stop == "lost":
                _log.info("job.lease_lost", job=job.name, fence=job.fence)
                return None
            if running.stop == "cancel":
                return attempt.outcome(State.CANCELLED, error="cancelled", reason=Reason.CANCELLED)
            return given_back(context, job)
        if running.stop == "drain" and outcome.state in (State.QUEUED, State.DEAD, State.FAILED):
            return given_back(context, job)
        return outcome

    async def _write(self, running: Running, outcome: Outcome) -> None:
        """Writes an outcome, through a database that is away for a while; a stop of the process waits for it."""
        job = running.context.job
        deadline, refused = asyncio.get_running_loop().time() + _WRITE_SECONDS, 0
        while True:
            try:
                ended = await self._finish(outcome)  # once it is in the batch, a cancel ends the wait only
            except Fault as fault:
                if asyncio.get_running_loop().time() > deadline or running.stop == "lost":
                    _log.error("job.outcome_lost", job=job.name, state=outcome.state.value, error=str(fault))
                    return
                await asyncio.sleep(0.5)
            except Exception as error:  # noqa: BLE001 -- what cannot be stored is an end too: one that can be stored
                refused += 1
                _log.error("job.outcome_refused", job=job.name, exc_info=error)
                if refused < _REFUSALS:
                    await asyncio.sleep(0.1)
                    continue
                report = claims.Report(job)
                why = "its outcome could not be stored"
                outcome = Outcome(report=report, state=State.FAILED, error=why, reason=Reason.NOT_RETRYABLE)
            else:
                self._told(job, State(ended.state) if ended else None, outcome.error)
                return

    async def _finish_batch(self, outcomes: list[Outcome]) -> list[Job | None]:
        async with self._database.transaction() as tx:
            ended = await claims.finish(tx, outcomes)
        return [ended.get(outcome.report.job.id) for outcome in outcomes]

    def _told(self, job: Job, state: State | None, error: str) -> None:
        if state is None:
            _log.info("job.lease_lost", job=job.name, fence=job.fence)
            return
        metrics.ATTEMPTS.labels(job.kind, state.value).inc()
        if error:  # what went well is in row, span and figures
            _log.warning("job.attempted", job=job.name, kind=job.kind, state=state.value, attempt=job.attempts, error=error)

    async def _flush(self) -> None:
        """Writes progress and log of those that have news."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            news = [running for running in self._running.values() if running.context.dirty]
            if not news:
                continue
            try:
                await self._write_progress(news)
            except Fault as fault:
                _log.warning("job.progress_failed", error=str(fault))

    async def _write_progress(self, news: list[Running]) -> None:
        reports = []
        for running in news:
            report = running.context.report
            reports.append(claims.Report(report.job, report.percent, report.message, report.step, list(report.log), report.new_lines))
            report.new_lines, running.context.dirty = [], False
        async with self._database.transaction() as tx:
            await claims.progress(tx, reports)

    async def _beat(self) -> None:
        """Holds the leases. A database that is away is tried again until they must have run out; then the jobs are stopped."""
        loop = asyncio.get_running_loop()
        held = loop.time()
        while True:
            await asyncio.sleep(self._heartbeat)
            if not self._running:
                held = loop.time()
                continue
            try:
                async with asyncio.timeout(self._heartbeat):
                    await self._hold()
                held = loop.time()
            except (Fault, TimeoutError, OSError) as error:
                _log.warning("job.heartbeat_failed", error=repr(error))
                if loop.time() - held > self._lease.total_seconds():
                    self._stop_all("lost")
            await self._abandon()

    async def _hold(self) -> None:
        running = list(self._running.values())
        async with self._database.transaction() as tx:
            ours = await claims.hold(tx, [r.context.job for r in running], self._lease)
        now = asyncio.get_running_loop().time()
        for one in running:
            cancel = ours.get(one.context.job.id)
            if cancel is None:
                one.ask("lost", now)
            elif cancel:
                one.ask("cancel", now)

    async def _abandon(self) -> None:
        """A handler that does not stop in time loses its job all the same; its late writes find a fence."""
        now = asyncio.get_running_loop().time()
        for running in list(self._running.values()):
            grace, job = running.kind.cancel_grace.total_seconds(), running.context.job
            late = running.stop == "cancel" and now - running.asked > grace
            overdue = not running.stop and now - running.begun > running.kind.timeout.total_seconds() + grace
            if not (late or overdue):
                continue
            _log.error("job.does_not_stop", job=job.name, kind=job.kind)
            attempt = Attempt(running.context, running.kind, self._database, self._allowed)
            cancelled = attempt.outcome(State.CANCELLED, error="cancelled; it did not stop by itself", reason=Reason.CANCELLED)
            overtime = attempt.retry(f"took longer than {running.kind.timeout} and did not stop", None, Reason.TIMEOUT)
            await self._finish(cancelled if late else overtime)
            running.ask("lost", now)

    def cancelled(self, payload: str) -> None:
        """A user wants a job to stop; for a PostgreSQL listener. The heartbeat finds what this misses."""
        with contextlib.suppress(ValueError):
            running = self._running.get(uuid.UUID(payload))
            if running is not None:
                running.ask("cancel", asyncio.get_running_loop().time())

    def _stop_all(self, why: str) -> None:
        for running in list(self._running.values()):
            running.ask(why, asyncio.get_running_loop().time())

    async def drain(self) -> None:
        """Takes no more, and gives back what runs: others go on with it at once, and the attempt does not count."""
        self._draining = True
        self._stop_all("drain")
        tasks = [running.task for running in self._running.values() if running.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
        for running in list(self._running.values()):  # does not let itself be stopped: taken from it
            with contextlib.suppress(Fault):
                await self._finish(given_back(running.context, running.context.job))
            running.ask("lost", 0.0)


def _ticket(dispatch: Any) -> Ticket:
    return uuid.UUID(dispatch.job), dispatch.dispatch
