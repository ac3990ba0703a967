"""The row of a job, and the event that tells of its moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kubegems.jobs.v1 import events_pb2
from libs.jobs.domain import Job, State
from libs.pg import Record, Tx, outbox

SCHEMA = "jobs"
MOVED = "gems.notice.jobs"
WAKE = "jobs"
CANCEL = "jobs_cancel"
_PER_EVENT = 500  # moves in one event
_BYTES = 128 * 1024  # of one event
STATES = {state.value: state for state in State}
_OPEN = (State.QUEUED.value, State.RUNNING.value)

_NAMES = (
    "id", "kind", "target", "queue", "state", "arguments", "creator", "owner", "percent", "message", "step", "log", "result", "error",
    "reason", "attempts", "max_attempts", "priority", "waits", "concurrency_key", "pending_key", "fence", "cancel", "traceparent",
    "replay_of", "run_time", "create_time", "start_time", "end_time",
)  # fmt: skip
COLUMNS = ", ".join(_NAMES)
COLUMNS_OF_J = ", ".join(f"j.{name}" for name in _NAMES)


def job(row: Record) -> Job:
    """The job in a row that begins with COLUMNS."""
    return Job._make((*row[:4], STATES[row[4]], *row[5 : len(_NAMES)]))


def storable(text: str) -> str:
    """Words of a handler, or of a program that it ran, as PostgreSQL and a message can carry them."""
    return text.replace("\x00", "").encode(errors="replace").decode()


async def moved(tx: Tx, jobs: Sequence[Job], lines: Mapping[object, Sequence[str]] | None = None) -> None:
    """Tells of moves in the transaction that made them.

    Args:
        tx: of the moves.
        jobs: as they are now.
        lines: new lines of the log by job id.
    """
    found = lines or {}
    await tell(
        tx,
        [
            event(
                job, state=job.state.value, percent=job.percent, message=job.message, step=job.step, attempt=job.attempts,
                cancel=job.cancel, lines=found.get(job.id, ()),
            )
            for job in jobs
        ],
    )  # fmt: skip


def event(
    of: Job, *, state: str, percent: int, message: str, step: str, attempt: int, cancel: bool, lines: Sequence[str]
) -> events_pb2.JobMoved:
    """What is told of a move."""
    return events_pb2.JobMoved(
        name=of.name, state=state, percent=percent, message=message, target=of.target, creator=of.creator, step=step, log_lines=lines,
        kind=of.kind, attempt=attempt, cancel_requested=cancel and state in _OPEN, fence=of.fence,
    )  # fmt: skip


async def tell(tx: Tx, events: Sequence[events_pb2.JobMoved]) -> None:
    """Publishes moves, some hundreds in one message: as many as it may weigh."""
    part: list[events_pb2.JobMoved] = []
    weight = 0
    for told in events:
        size = told.ByteSize()
        if part and (weight + size > _BYTES or len(part) == _PER_EVENT):
            await _publish(tx, part)
            part, weight = [], 0
        part.append(told)
        weight += size
    if part:
        await _publish(tx, part)


async def _publish(tx: Tx, part: list[events_pb2.JobMoved]) -> None:
    part[0].also.extend(part[1:])
    await outbox.publish(tx, SCHEMA, MOVED, part[0])


async def wake(tx: Tx) -> None:
    """Has dispatchers look again once the transaction is committed."""
    await tx.execute("SELECT pg_notify($1, '')", WAKE)
