"""JobService and QueueService: parse, one transaction, answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC

from google.protobuf import json_format
from google.protobuf.message import Message

from kubegems.jobs.v1 import job_pb2, job_service_pb2, queue_pb2, queue_service_pb2
from libs import pg
from libs.faults import Violation
from libs.jobs import queues, rows, steps, store
from libs.jobs.domain import Job, JobEnded, JobNotEnded
from libs.jobs.kind import Kind
from libs.jobs.store import Seen
from libs.pg import Database, Tx, filters, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.worker import messages
from services.worker.domain import JobNotFound, QueueNotFound, UnknownKind

WATCH_POLL_SECONDS = 0.5
MOST_AT_ONCE = 1000


class Jobs:
    """kubegems.jobs.v1.JobService."""

    def __init__(self, database: Database, kinds: Mapping[str, Kind], pages: Pages) -> None:
        self._database = database
        self._kinds = kinds
        self._pages = pages

    async def CreateJob(self, request: job_service_pb2.CreateJobRequest, call: Call) -> job_pb2.Job:
        """Starts a job."""
        wanted = request.job
        kind = self._kind(wanted.kind, wanted.target)
        payload = kind.parse(json_format.MessageToDict(wanted.payload), strict=True)
        order = kind.order(
            wanted.target, call.caller.name, payload, priority=wanted.priority,
            run_time=wanted.run_time.ToDatetime(tzinfo=UTC) if wanted.HasField("run_time") else None,
            idempotency_key=f"{call.caller.name} {request.request_id}" if request.request_id else None,
        )  # fmt: skip
        made = await store.enqueue(await pg.tx(call), order)
        call.resources.append(made.job.name)
        return messages.job(made.job)

    def _kind(self, name: str, target: str) -> Kind:
        kind = self._kinds.get(name)
        if kind is None:
            known = ", ".join(sorted(self._kinds))
            raise UnknownKind.fields([Violation("job.kind", f"{name!r} is not a kind of job; known are {known}")])
        if not kind.fits(target):
            raise UnknownKind.fields([Violation("job.target", f"{target!r} does not fit {kind.name}")])
        return kind

    async def GetJob(self, request: job_service_pb2.GetJobRequest, call: Call) -> job_pb2.Job:
        """Returns a job."""
        tx = await pg.tx(call)
        return await self._shown(tx, await self._visible(tx, request.name, call))

    async def ListJobs(self, request: job_service_pb2.ListJobsRequest, call: Call) -> job_service_pb2.ListJobsResponse:
        """Lists jobs, newest first."""
        where = lists.Where()
        _seen(call).narrow(where)
        found = await lists.read(await pg.tx(call), self._pages, call, request, source=store.SOURCE, where=where)
        shown = [messages.job(rows.job(row)) for row in found.rows]
        return job_service_pb2.ListJobsResponse(jobs=shown, next_page_token=found.token)

    async def WatchJob(self, request: job_service_pb2.WatchJobRequest, call: Call) -> AsyncIterator[job_pb2.Job]:
        """Streams a job at every change until it has ended."""
        last: Message | None = None
        while True:
            async with self._database.transaction(readonly=True) as tx:
                job = await self._visible(tx, request.name, call)
                shown = await self._shown(tx, job)
            if shown != last:
                last = shown
                yield shown
            if job.state.ended:
                return
            await asyncio.sleep(WATCH_POLL_SECONDS)

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, call: Call) -> job_pb2.Job:
        """Cancels a job."""
        tx = await pg.tx(call)
        job = await self._visible(tx, request.name, call)
        cancelled = await store.cancel(tx, job.id)
        if cancelled is None:
            raise JobEnded(f"{job.name} is {job.state} and cannot be cancelled")
        return messages.job(cancelled)

    async def RetryJob(self, request: job_service_pb2.RetryJobRequest, call: Call) -> job_pb2.Job:
        """Queues an ended job again, to go on at the step that failed."""
        tx = await pg.tx(call)
        job = await self._visible(tx, request.name, call)
        queued = await store.again(tx, job.id)
        if queued is None:
            raise JobNotEnded(f"{job.name} is {job.state}, or its like is pending; only a failed, cancelled or dead job can be retried")
        return messages.job(queued)

    async def ReplayJob(self, request: job_service_pb2.ReplayJobRequest, call: Call) -> job_pb2.Job:
        """Starts an ended job anew, as a job of the caller."""
        tx = await pg.tx(call)
        job = await self._visible(tx, request.name, call)
        if not job.state.ended:
            raise JobNotEnded(f"{job.name} is {job.state}; only an ended job can be replayed")
        kind = self._kind(job.kind, job.target)
        key = f"{call.caller.name} replay {request.request_id}" if request.request_id else None
        order = kind.order(
            job.target, call.caller.name, kind.parse(job.arguments), priority=job.priority, idempotency_key=key, replay_of=job.id
        )
        made = await store.enqueue(tx, order)
        call.resources.append(made.job.name)
        return messages.job(made.job)

    async def BulkRetryJobs(self, request: job_service_pb2.BulkRetryJobsRequest, call: Call) -> job_service_pb2.BulkRetryJobsResponse:
        """Queues all jobs again that a filter finds and that can be."""
        tx = await pg.tx(call)
        where, args = filters.parse(request.filter, store.SOURCE.filters, first_parameter=7)
        where += " AND state IN ('FAILED', 'CANCELLED', 'DEAD')"
        found = await store.page(tx, _seen(call), before=None, limit=MOST_AT_ONCE, where=where, args=args)
        again = [await store.again(tx, job.id) for job in found]
        return job_service_pb2.BulkRetryJobsResponse(jobs=[job.name for job in again if job is not None])

    async def PurgeJobs(self, request: job_service_pb2.PurgeJobsRequest, call: Call) -> job_service_pb2.PurgeJobsResponse:
        """Removes ended jobs."""
        where, args = filters.parse(request.filter, store.SOURCE.filters, first_parameter=6)
        gone = await store.purge(await pg.tx(call), _seen(call), limit=MOST_AT_ONCE, where=where, args=args, dry_run=request.validate_only)
        return job_service_pb2.PurgeJobsResponse(purged=len(gone))

    async def _shown(self, tx: Tx, job: Job) -> job_pb2.Job:
        paused = bool(await tx.value("SELECT paused FROM jobs.queues WHERE name = $1", job.queue))
        return messages.job(job, paused=paused, steps_=await steps.of(tx, job.id))

    async def _visible(self, tx: Tx, name: str, call: Call) -> Job:
        try:
            job = await store.get(tx, uuid.UUID(name.removeprefix("jobs/")))
        except ValueError:
            job = None
        if job is None or not call.caller.allows(call.method.rule.permission, job.target):
            raise JobNotFound(f"there is no {name}")
        return job


def _seen(call: Call) -> Seen:
    scopes = call.caller.rights.scopes(call.method.rule.permission)
    return Seen(scopes.everything, sorted(scopes.exact), sorted(scopes.trees))


class Queues:
    """kubegems.jobs.v1.QueueService."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def ListQueues(self, request: queue_service_pb2.ListQueuesRequest, call: Call) -> queue_service_pb2.ListQueuesResponse:
        """Lists the queues, by name."""
        found = await lists.read(await pg.tx(call), self._pages, call, request, source=queues.SOURCE)
        shown = [messages.queue(queues.Queue(*row.values())) for row in found.rows]
        return queue_service_pb2.ListQueuesResponse(queues=shown, next_page_token=found.token)

    async def PauseQueue(self, request: queue_service_pb2.PauseQueueRequest, call: Call) -> queue_pb2.Queue:
        """Keeps new jobs of a queue from starting."""
        tx, name = await pg.tx(call), request.name.removeprefix("queues/")
        return await self._shown(tx, name, known=await queues.pause(tx, name, call.caller.name))

    async def ResumeQueue(self, request: queue_service_pb2.ResumeQueueRequest, call: Call) -> queue_pb2.Queue:
        """Lets jobs of a queue start again."""
        tx, name = await pg.tx(call), request.name.removeprefix("queues/")
        return await self._shown(tx, name, known=await queues.resume(tx, name))

    async def _shown(self, tx: Tx, name: str, *, known: bool) -> queue_pb2.Queue:
        if not known:
            raise QueueNotFound(f"there is no queues/{name}")
        [found] = [queue for queue in await queues.figures(tx) if queue.name == name]
        return messages.queue(found)
