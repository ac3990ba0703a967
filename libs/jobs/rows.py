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
_PER_EVENT = 200  # moves in one event: far below what a message may weigh

_NAMES = (
    "id", "kind", "target", "queue", "state", "arguments", "creator", "owner", "percent", "message", "step", "log", "result", "error",
    "reason", "attempts", "max_attempts", "priority", "waits", "concurrency_key", "pending_key", "fence", "cancel", "traceparent",
    "replay_of", "run_time", "create_time", "start_time", "end_time",
)  # fmt: skip
COLUMNS = ", ".join(_NAMES)
COLUMNS_OF_J = ", ".join(f"j.{name}" for name in _NAMES)


def job(row: Record) -> Job:
    """The job in a row with COLUMNS."""
    values = list(row.values())[: len(_NAMES)]
    values[4] = State(values[4])
    return Job(*values)


async def moved(tx: Tx, jobs: Sequence[Job], lines: Mapping[object, Sequence[str]] | None = None) -> None:
    """Tells of moves in the transaction that made them, a few hundred in one event.

    Args:
        tx: of the moves.
        jobs: as they are now.
        lines: new lines of the log by job id.
    """
    for start in range(0, len(jobs), _PER_EVENT):
        first, *also = [_event(found, (lines or {}).get(found.id, ())) for found in jobs[start : start + _PER_EVENT]]
        first.also.extend(also)
        await outbox.publish(tx, SCHEMA, MOVED, first)


def _event(found: Job, lines: Sequence[str]) -> events_pb2.JobMoved:
    return events_pb2.JobMoved(
        name=found.name, state=found.state.value, percent=found.percent, message=found.message, target=found.target,
        creator=found.creator, step=found.step, log_lines=lines, kind=found.kind, attempt=found.attempts,
        cancel_requested=found.cancel and not found.state.ended, fence=found.fence,
    )  # fmt: skip


async def wake(tx: Tx) -> None:
    """Has dispatchers look again once the transaction is committed."""
    await tx.execute("SELECT pg_notify($1, '')", WAKE)
