"""JobService and ScheduleService: parse, one transaction, answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping

from google.protobuf.message import Message

from kubegems.jobs.v1 import job_pb2, job_service_pb2, schedule_pb2, schedule_service_pb2
from libs import pg
from libs.faults import Violation
from libs.jobs import schedule, store
from libs.jobs.domain import Job, JobEnded, JobNotEnded, Kind
from libs.pg import Database, Tx, filters
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.worker.domain import JobNotFound, ScheduleNotFound, UnknownKind

_FILTERS: dict[str, str | filters.Column] = {"kind": "kind", "state": "state", "target": "target"}
WATCH_POLL_SECONDS = 0.5


class Jobs:
    """kubegems.jobs.v1.JobService."""

    def __init__(self, database: Database, kinds: Mapping[str, Kind], pages: Pages) -> None:
        self._database = database
        self._kinds = kinds
        self._pages = pages

    async def CreateJob(self, request: job_service_pb2.CreateJobRequest, call: Call) -> job_pb2.Job:
        """Starts a job."""
        kind = self._kinds.get(request.job.kind)
        if kind is None:
            known = ", ".join(sorted(self._kinds))
            raise UnknownKind.fields([Violation("job.kind", f"{request.job.kind!r} is not a kind of job; known are {known}")])
        if not kind.fits(request.job.target):
            raise UnknownKind.fields([Violation("job.target", f"{request.job.target!r} does not fit {kind.name}")])
        tx = await pg.tx(call)
        job = await store.enqueue(tx, kind=kind.name, target=request.job.target, creator=call.caller.name, max_attempts=kind.max_attempts)
        assert job is not None  # without a unique key nothing can be there already
        call.resources.append(job.name)
        return _to_proto(job)

    async def GetJob(self, request: job_service_pb2.GetJobRequest, call: Call) -> job_pb2.Job:
        """Returns a job."""
        return _to_proto(await self._visible(await pg.tx(call), request.name, call))

    async def ListJobs(self, request: job_service_pb2.ListJobsRequest, call: Call) -> job_service_pb2.ListJobsResponse:
        """Lists jobs, newest first."""
        page = self._pages.open(call, request, order=("id",))
        where, args = filters.parse(request.filter, _FILTERS, first_parameter=7)
        scopes = call.caller.rights.scopes(call.method.rule.permission)
        jobs = await store.page(
            await pg.tx(call),
            everything=scopes.everything,
            exact=sorted(scopes.exact),
            trees=sorted(scopes.trees),
            before=uuid.UUID(page.after[0]) if page.after else None,
            limit=page.limit,
            where=where,
            args=args,
        )
        shown, token = page.close(jobs, key=lambda job: (str(job.id),))
        return job_service_pb2.ListJobsResponse(jobs=[_to_proto(job) for job in shown], next_page_token=token)

    async def WatchJob(self, request: job_service_pb2.WatchJobRequest, call: Call) -> AsyncIterator[job_pb2.Job]:
        """Streams a job at every change until it has ended."""
        last: Message | None = None
        while True:
            async with self._database.transaction(readonly=True) as tx:
                job = await self._visible(tx, request.name, call)
            shown = _to_proto(job)
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
        return _to_proto(cancelled)

    async def RetryJob(self, request: job_service_pb2.RetryJobRequest, call: Call) -> job_pb2.Job:
        """Queues an ended job again."""
        tx = await pg.tx(call)
        job = await self._visible(tx, request.name, call)
        queued = await store.again(tx, job.id)
        if queued is None:
            raise JobNotEnded(f"{job.name} is {job.state}; only a failed, cancelled or dead job can be retried")
        return _to_proto(queued)

    async def _visible(self, tx: Tx, name: str, call: Call) -> Job:
        try:
            job = await store.get(tx, uuid.UUID(name.removeprefix("jobs/")))
        except ValueError:
            job = None
        if job is None or not call.caller.allows(call.method.rule.permission, job.target):
            raise JobNotFound(f"there is no {name}")
        return job


class Schedules:
    """kubegems.jobs.v1.ScheduleService."""

    def __init__(self, kinds: Mapping[str, Kind], schedules: Mapping[str, schedule.Schedule], pages: Pages) -> None:
        self._kinds = kinds
        self._schedules = schedules
        self._pages = pages

    async def ListSchedules(
        self, request: schedule_service_pb2.ListSchedulesRequest, call: Call
    ) -> schedule_service_pb2.ListSchedulesResponse:
        """Lists the schedules, by name."""
        page = self._pages.open(call, request, order=("name",))
        rows = await schedule.page(await pg.tx(call), after=page.after[0] if page.after else "", limit=page.limit)
        shown, token = page.close(rows, key=lambda row: (row.name,))
        return schedule_service_pb2.ListSchedulesResponse(schedules=[_schedule(row) for row in shown], next_page_token=token)

    async def RunSchedule(self, request: schedule_service_pb2.RunScheduleRequest, call: Call) -> schedule_service_pb2.RunScheduleResponse:
        """Starts a schedule's jobs now."""
        found = self._schedules.get(request.name.removeprefix("schedules/"))
        if found is None:
            raise ScheduleNotFound(f"there is no {request.name}")
        targets = await found.targets()
        tx = await pg.tx(call)
        jobs = await schedule.start(tx, found, self._kinds, targets, f"run {call.request_id}")
        return schedule_service_pb2.RunScheduleResponse(jobs=jobs)


def _to_proto(job: Job) -> job_pb2.Job:
    shown = job_pb2.Job(
        name=job.name,
        kind=job.kind,
        target=job.target,
        state=job_pb2.Job.State.Value(job.state.value),
        progress=job_pb2.Job.Progress(percent=job.percent, message=job.message),
        error=job.error,
        attempts=job.attempts,
        creator=job.creator,
        trace_id=job.trace_id,
    )
    shown.create_time.FromDatetime(job.create_time)
    if job.start_time:
        shown.start_time.FromDatetime(job.start_time)
    if job.end_time:
        shown.end_time.FromDatetime(job.end_time)
    if job.result is not None:
        shown.result.update(job.result)
    return shown


def _schedule(row: schedule.Row) -> schedule_pb2.Schedule:
    shown = schedule_pb2.Schedule(name=f"schedules/{row.name}", kind=row.kind, interval_seconds=row.interval_seconds)
    shown.next_time.FromDatetime(row.next_time)
    if row.last_time:
        shown.last_time.FromDatetime(row.last_time)
    return shown
