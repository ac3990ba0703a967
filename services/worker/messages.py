"""Rows of the engine as the API's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from kubegems.jobs.v1 import job_pb2, queue_pb2, schedule_pb2
from libs.jobs import steps
from libs.jobs.domain import Job
from libs.jobs.queues import Queue
from libs.jobs.schedule import Firing, Row
from libs.pg import etag

_WAITS = {
    "TIME": "waits for its time",
    "KEY": "waits for the job that holds its concurrency key",
    "KIND": "waits for a worker that knows this kind of job",
}
_QUEUE_PAUSED = "its queue is paused"


def job(found: Job, *, paused: bool = False, steps_: Sequence[steps.Row] = ()) -> job_pb2.Job:
    """A job; `paused` says whether its queue is."""
    waits = found.waits or ("QUEUE" if paused and found.state == "QUEUED" else "")
    shown = job_pb2.Job(
        name=found.name, kind=found.kind, target=found.target, state=job_pb2.Job.State.Value(found.state.value),
        progress=job_pb2.Job.Progress(percent=found.percent, message=found.message, step=found.step, log_tail=found.log),
        error=found.error, attempts=found.attempts, creator=found.creator, trace_id=found.trace_id, queue=found.queue,
        priority=found.priority, cancel_requested=found.cancel and not found.state.ended, waiting_for=waits,
        waiting_reason=_WAITS.get(waits, _QUEUE_PAUSED if waits else ""), max_attempts=found.max_attempts, reason=found.reason,
        owner=found.owner, concurrency_key=found.concurrency_key or "", replay_of=f"jobs/{found.replay_of}" if found.replay_of else "",
        steps=[_step(row, found.state) for row in steps_],
    )  # fmt: skip
    _times(shown, create_time=found.create_time, start_time=found.start_time, end_time=found.end_time, run_time=found.run_time)
    _struct(shown.payload, found.arguments)
    if found.result is not None:
        shown.result.update(found.result)
    return shown


def _step(row: steps.Row, job_state: str) -> job_pb2.Job.Step:
    # a step that was cut short, by a cancel or its worker's death, is where its job is now
    state = job_pb2.Job.State.Value(job_state if row.state == "RUNNING" else row.state)
    shown = job_pb2.Job.Step(name=row.name, state=state, attempts=row.attempts, error=row.error)
    _times(shown, start_time=row.start_time, end_time=row.end_time)
    return shown


def queue(found: Queue) -> queue_pb2.Queue:
    """A queue."""
    shown = queue_pb2.Queue(
        name=f"queues/{found.name}", paused=found.paused, pauser=found.pauser, ready=found.ready, waiting=found.waiting,
        dispatched=found.dispatched, running=found.running, dead=found.dead, oldest_seconds=found.oldest_seconds,
    )  # fmt: skip
    _times(shown, pause_time=found.pause_time)
    return shown


def schedule(row: Row) -> schedule_pb2.Schedule:
    """A schedule."""
    shown = schedule_pb2.Schedule(
        name=f"schedules/{row.name}", kind=row.kind, interval_seconds=row.interval_seconds or 0, cron=row.cron, time_zone=row.time_zone,
        jitter_seconds=row.jitter_seconds, missed_runs=schedule_pb2.Schedule.MissedRuns.Value(row.missed_runs), disabled=row.disabled,
        target=row.target, owner=row.owner, built_in=row.built_in, etag=etag(row.version),
    )  # fmt: skip
    _times(shown, next_time=None if row.disabled else row.next_time, last_time=row.last_time)
    _struct(shown.payload, row.payload)
    return shown


def run(firing: Firing) -> schedule_pb2.ScheduleRun:
    """A firing of a schedule."""
    shown = schedule_pb2.ScheduleRun(outcome=firing.outcome, jobs=firing.jobs, message=firing.message)
    _times(shown, due_time=firing.due_time, start_time=firing.start_time)
    return shown


def _times(shown: Any, **times: datetime | None) -> None:
    for name, time in times.items():
        if time is not None:
            getattr(shown, name).FromDatetime(time)


def _struct(shown: Any, values: Mapping[str, Any]) -> None:
    if values:
        shown.update(values)
