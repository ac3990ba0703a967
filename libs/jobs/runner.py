"""Runner: takes messages of the work queue, claims in batches, runs handlers, writes outcomes under the fence.

A message is acknowledged once its claim is committed or refused: from then on the lease in PostgreSQL counts, not the
broker's patience. Messages doubled, late or lost change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta

from kubegems.jobs.v1 import events_pb2
from libs import log
from libs.bus import Bus, streams
from libs.bus.tickets import Ticket as Letter
from libs.faults import Fault
from libs.jobs import claims, metrics, tickets
from libs.jobs.attempt import Allowed, Attempt, Done, given_back
from libs.jobs.claims import Claimed, Outcome
from libs.jobs.context import Context
from libs.jobs.domain import Job, LeaseLost, Reason, State
from libs.jobs.ending import Ending
from libs.jobs.kind import Kind
from libs.jobs.running import Running
from libs.jobs.tickets import Ticket
from libs.log import trace
from libs.pg import Database

LEASE = timedelta(seconds=15)
HEARTBEAT_SECONDS = 3.0
FLUSH_SECONDS = 0.2
DRAIN_SECONDS = 8.0
DURABLE = "workers"
_ACK_WAIT = 30.0
_WATCH_SECONDS = 0.1
_GC = (50_000, 20, 50)
_CLAIMS = 2  # statements at a time: while they run, messages gather for the next
_log = log.get("libs.jobs")


def collect_seldom() -> None:
    """What is there now stays for good, and what a job leaves goes by itself: looking for cycles took a fifth of a busy worker's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC)


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
        self._taken = 0  # jobs whose claim is under way
        self._freed = asyncio.Event()
        self._draining = False
        self._watched = False  # somebody looks whether time is over
        self._ending = Ending(database)
        self._bundle = tickets.bundle(concurrency)

    @property
    def running(self) -> int:
        """Jobs that we hold."""
        return len(self._running)

    async def run(self, bus: Bus) -> None:
        """Works until cancelled; then use `drain`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(), name="job heartbeat")
            group.create_task(self._flush(), name="job progress")
            claiming = asyncio.Semaphore(_CLAIMS - 1)
            async with contextlib.aclosing(bus.tickets(streams.JOBS.name, durable=DURABLE, room=self._room, ack_wait=_ACK_WAIT)) as pages:
                async for page in pages:
                    good, asked = await self._read(page)
                    self._taken += len(asked)  # before anybody looks for room again
                    group.create_task(self._receive(good, asked, claiming), name="job messages")
                    await claiming.acquire()

    async def _room(self) -> int:
        """How many messages to ask for; waits until there is room for the jobs of one."""
        while (room := (self._concurrency - len(self._running) - self._taken) // self._bundle) < 1 or self._draining:
            self._freed.clear()
            await self._freed.wait()
        return room

    async def _read(self, page: Sequence[Letter]) -> tuple[list[Letter], list[Ticket]]:
        """What messages ask for; one that nobody can read must never come again."""
        good: list[Letter] = []
        asked: list[Ticket] = []
        for letter in page:
            try:
                asked += tickets.parse(letter.data)
            except ValueError as error:
                _log.error("job.message_rejected", error=str(error))
                await letter.term()
            else:
                good.append(letter)
        return good, asked

    async def _receive(self, page: Sequence[Letter], asked: Sequence[Ticket], claiming: asyncio.Semaphore) -> None:
        try:
            if self._draining:
                await self._answer(page, lambda letter: letter.again(0))
                return
            try:
                await self._take(asked)
            except Exception as error:  # noqa: BLE001 -- the messages come again; whatever it is, the jobs wait in PostgreSQL
                _log.warning("job.claim_failed", count=len(asked), error=repr(error))
                await self._answer(page, lambda letter: letter.again(1.0))
            else:
                await self._answer(page, Letter.ack)
        finally:
            self._give_places(len(asked))
            claiming.release()

    @staticmethod
    async def _answer(page: Sequence[Letter], word: Callable[[Letter], Awaitable[None]]) -> None:
        for letter in page:
            await word(letter)

    def _give_places(self, count: int) -> None:
        self._taken -= count
        self._freed.set()

    async def handle(self, dispatch: events_pb2.JobDispatch) -> None:
        """Answers one message and waits for the end of its attempts; for who has no stream."""
        asked = tickets.of(dispatch)
        self._taken += len(asked)
        try:
            ends = [running.end() for running in await self._take(asked)]
        finally:
            self._give_places(len(asked))
        await asyncio.gather(*ends)

    async def _take(self, asked: Sequence[Ticket]) -> list[Running]:
        """Claims, and starts what is ours."""
        if not asked:
            return []
        async with self._database.transaction() as tx:
            found = await claims.claim_all(tx, asked, lease=self._lease, worker=self._worker, known=self._known)
        metrics.CLAIMS.inc(len(found))
        self._on_claimed(len(found))
        now = asyncio.get_running_loop().time()
        return [self._start(claimed, now) for claimed in found]

    def _start(self, claimed: Claimed, now: float) -> Running:
        job = claimed.job
        metrics.LAG.observe(claimed.lag)
        running = Running(Context(job, self._database), self._kinds[job.kind], now, stop="drain" if self._draining else "")
        self._running[job.id] = running
        if not self._watched:
            self._watched = True
            asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._watch)
        running.task = asyncio.create_task(self._attempt(running), name=job.kind)
        return running

    async def _attempt(self, running: Running) -> None:
        job = running.context.job
        outcome = None
        try:
            with _span(job) as span:
                outcome = await self._outcome(running)
                if outcome is not None and outcome.error:
                    trace.fail(span, outcome.error)
        finally:
            if outcome is None:
                self._forget(running)
            else:
                self._end(running, outcome)

    def _end(self, running: Running, outcome: Outcome) -> None:
        """Hands an outcome on; the job stays ours until it is written."""
        running.ending, running.context.dirty = True, False

        def told(written: Outcome, state: State | None) -> None:
            self._tell(running.context.job, state, written.error)
            self._forget(running)

        self._ending.add(outcome, told, lambda: running.stop == "lost")

    def _forget(self, running: Running) -> None:
        if self._running.get(running.context.job.id) is running:
            del self._running[running.context.job.id]
        for future in running.ended:
            if not future.done():
                future.set_result(None)
        self._freed.set()

    async def _outcome(self, running: Running) -> Outcome | None:
        """None: there is nothing to write."""
        context, job = running.context, running.context.job
        attempt = Attempt(context, running.kind, self._database, self._allowed)
        running.entered, asked = True, running.stop
        try:
            if asked:  # before it began
                return self._stopped(running, attempt)
            outcome = await attempt.run()
        except Done:
            self._tell(job, State.SUCCEEDED, "")
            return None
        except LeaseLost:
            _log.info("job.lease_lost", job=job.name, fence=job.fence)
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            return self._stopped(running, attempt)
        if running.stop == "drain" and outcome.state in (State.QUEUED, State.DEAD, State.FAILED):
            return given_back(context, job)
        return outcome

    def _watch(self) -> None:
        """Stops those whose time is over: one look at all now and then is cheaper than a timer for each."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for running in self._running.values():
            if now - running.begun > running.kind.seconds and not running.ending:
                running.ask("late", now)
        self._watched = bool(self._running)
        if self._watched:
            loop.call_later(_WATCH_SECONDS, self._watch)

    @staticmethod
    def _stopped(running: Running, attempt: Attempt) -> Outcome | None:
        """What becomes of an attempt that let itself be stopped."""
        context, job = running.context, running.context.job
        if running.stop == "lost":
            _log.info("job.lease_lost", job=job.name, fence=job.fence)
            return None
        if running.stop == "cancel":
            return attempt.outcome(State.CANCELLED, error="cancelled", reason=Reason.CANCELLED)
        if running.stop == "late":
            return attempt.retry(f"took longer than {running.kind.timeout}", None, Reason.TIMEOUT)
        if running.stop == "drain":
            return given_back(context, job)
        _log.error("job.cancelled_itself", job=job.name, kind=job.kind)  # something that it waited for was cancelled
        return attempt.retry("internal error", None)

    def _tell(self, job: Job, state: State | None, error: str) -> None:
        if state is None:
            _log.info("job.lease_lost", job=job.name, fence=job.fence)
            return
        metrics.attempt(job.kind, state)
        if error:  # what went well is in row, span and figures
            _log.warning("job.attempted", job=job.name, kind=job.kind, state=state.value, attempt=job.attempts, error=error)

    async def _flush(self) -> None:
        """Writes progress and log of those that have news and are not about to end."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            before = loop.time() - FLUSH_SECONDS
            news = [running for running in self._running.values() if running.context.dirty and running.begun <= before]
            if not news:
                continue
            reports = [running.context.take_report() for running in news]
            try:
                async with self._database.transaction() as tx:
                    await claims.progress(tx, reports)
            except Exception as error:  # noqa: BLE001 -- the worker outlives what a handler has to say
                _log.warning("job.progress_failed", error=repr(error))
                for running, report in zip(news, reports, strict=True):
                    running.context.give_back(report)

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
                async with asyncio.timeout(self._heartbeat):
                    await self._abandon()
            except Exception as error:  # noqa: BLE001 -- without a heartbeat all that runs would be lost
                _log.warning("job.heartbeat_failed", error=repr(error))
                if loop.time() - held > self._lease.total_seconds():
                    self._stop_all("lost")

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
            if running.ending or running.stop not in ("cancel", "late") or now - running.asked <= grace:
                continue
            _log.error("job.does_not_stop", job=job.name, kind=job.kind)
            attempt = Attempt(running.context, running.kind, self._database, self._allowed)
            cancelled = attempt.outcome(State.CANCELLED, error="cancelled; it did not stop by itself", reason=Reason.CANCELLED)
            overtime = attempt.retry(f"took longer than {running.kind.timeout} and did not stop", None, Reason.TIMEOUT)
            await self._take_away(running, cancelled if running.stop == "cancel" else overtime)

    async def _take_away(self, running: Running, outcome: Outcome) -> None:
        """Ends an attempt over its handler's head."""
        async with self._database.transaction() as tx:
            await claims.finish(tx, [outcome])
        running.ask("lost", asyncio.get_running_loop().time())

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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._running or self._taken:  # a claim that is under way makes jobs ours yet
                    self._freed.clear()
                    await self._freed.wait()
        for running in list(self._running.values()):  # does not let itself be stopped: taken from it
            with contextlib.suppress(Fault):
                await self._take_away(running, given_back(running.context, running.context.job))


def _span(job: Job) -> AbstractContextManager[trace.Span]:
    def attributes() -> dict[str, str | int | bool]:
        return {"job.id": str(job.id), "job.kind": job.kind, "job.target": job.target, "job.attempt": job.attempts, "job.fence": job.fence}

    return trace.light(f"job {job.kind}", parent=job.traceparent, kind=trace.SpanKind.CONSUMER, attributes=attributes)
