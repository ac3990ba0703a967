"""Runner: takes messages from the work queue, claims, runs the kind's handler, writes the outcome under the fence."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

from kubegems.jobs.v1 import events_pb2
from libs import log
from libs.faults import Code, Fault
from libs.jobs import store
from libs.jobs.domain import GiveUp, Job, Kind, LeaseLost, Retry, State, backoff
from libs.log import trace
from libs.pg import Database

LEASE = timedelta(seconds=15)
HEARTBEAT_SECONDS = 3.0
_TRY_AGAIN = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.INTERNAL}
_log = log.get("libs.jobs")

Allowed = Callable[[str, str, str], Awaitable[bool]]
Outcome = tuple[State, Mapping[str, Any] | None, str, timedelta]


class Runner:
    """Runs jobs of the kinds it knows.

    Args:
        allowed: (creator's user name, permission, target) → whether the creator still may; asked at every claim.
        worker: name of this process, for the claim log.
    """

    def __init__(self, database: Database, kinds: Mapping[str, Kind], *, allowed: Allowed, worker: str) -> None:
        self._database = database
        self._kinds = kinds
        self._allowed = allowed
        self._worker = worker

    async def handle(self, dispatch: events_pb2.JobDispatch) -> None:
        """Answers one message of the work queue; returning acknowledges it, whether or not there was anything to do."""
        async with self._database.transaction() as tx:
            job = await store.claim(tx, uuid.UUID(dispatch.job), dispatch.dispatch, lease=LEASE, worker=self._worker)
        if job is None:
            return
        attributes: dict[str, str | int | bool] = {
            "job.id": str(job.id),
            "job.kind": job.kind,
            "job.target": job.target,
            "job.attempt": job.attempts,
        }
        attributes["job.id"] = str(job.id)
        with trace.span(f"job {job.kind}", parent=job.traceparent, kind=trace.SpanKind.CONSUMER, attributes=attributes) as span:
            outcome = await self._attempt(job)
            if outcome is None:
                _log.info("job.lease_lost", job=job.name, fence=job.fence)
                return
            state, result, error, after = outcome
            if error:
                trace.fail(span, error)
            # Shielded: a stop of the process must not lose an outcome that is already known.
            await asyncio.shield(self._finish(job, state, result, error, after))
        _log.info("job.attempted", job=job.name, kind=job.kind, state=state.value, attempt=job.attempts, error=error)

    async def _finish(self, job: Job, state: State, result: Mapping[str, Any] | None, error: str, after: timedelta) -> None:
        async with self._database.transaction() as tx:
            await store.finish(tx, job, state, result=result, error=error, after=after)

    async def _attempt(self, job: Job) -> Outcome | None:  # noqa: PLR0911 -- one line per way an attempt can end
        kind = self._kinds.get(job.kind)
        if kind is None:
            return State.FAILED, None, f"no worker knows the kind {job.kind}", timedelta()
        try:
            if not await self._may(job, kind):
                return State.FAILED, None, f"{job.creator} may no longer {kind.permission} on {job.target}", timedelta()
            async with asyncio.timeout(kind.timeout.total_seconds()):
                result = await self._held(job, kind)
        except LeaseLost:
            return None
        except GiveUp as error:
            return State.FAILED, None, str(error), timedelta()
        except Retry as error:
            return self._retry(job, str(error), error.after)
        except TimeoutError:
            return self._retry(job, f"took longer than {kind.timeout}", None)
        except Fault as fault:
            return (
                self._retry(job, str(fault), fault.retry_after)
                if fault.code in _TRY_AGAIN
                else (State.FAILED, None, str(fault), timedelta())
            )
        except Exception as error:  # noqa: BLE001 -- a handler's mistake must end as an outcome, not as a lost job
            _log.error("job.crashed", job=job.name, kind=job.kind, exc_info=error)
            return self._retry(job, "internal error", None)
        return State.SUCCEEDED, result, "", timedelta()

    async def _may(self, job: Job, kind: Kind) -> bool:
        if not kind.permission or not job.creator.startswith("users/"):
            return True
        return await self._allowed(job.creator.removeprefix("users/"), kind.permission, job.target)

    def _retry(self, job: Job, error: str, after: timedelta | None) -> Outcome:
        if job.attempts >= job.max_attempts:
            return State.DEAD, None, error, timedelta()
        return State.QUEUED, None, error, after or backoff(job.attempts)

    async def _held(self, job: Job, kind: Kind) -> Mapping[str, Any]:
        """Runs the handler while a heartbeat holds the lease; losing the lease stops the handler."""

        async def report(percent: int, message: str) -> None:
            async with self._database.transaction() as tx:
                if not await store.progress(tx, job, percent, message, LEASE):
                    raise LeaseLost

        work = asyncio.ensure_future(kind.handler(job, report))
        beat = asyncio.create_task(self._beat(job), name=f"heartbeat {job.name}")
        try:
            await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise LeaseLost
        finally:
            for task in (work, beat):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _beat(self, job: Job) -> None:
        """Ends when the job is no longer ours; a database that is away is tried again until the lease must have run out."""
        loop = asyncio.get_running_loop()
        held_until = loop.time() + LEASE.total_seconds()
        while loop.time() < held_until:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS), self._database.transaction() as tx:
                    if not await store.hold(tx, job, LEASE):
                        return
                held_until = loop.time() + LEASE.total_seconds()
