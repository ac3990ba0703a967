"""Jobs as their users see them: enqueue, look, cancel, retry, purge. All SQL, as functions over a Tx."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from libs.clock import new_id
from libs.faults import Invalid, Violation
from libs.jobs import rows
from libs.jobs.domain import MOST_PAYLOAD, Job, Order, State
from libs.jobs.rows import CANCEL, COLUMNS, MOVED, SCHEMA, WAKE
from libs.log import trace
from libs.pg import Tx
from libs.pg.filters import Column
from libs.pg.lists import Source, Where
from libs.pg.ordering import Part

__all__ = ["MOVED", "SCHEMA", "SOURCE", "WAKE", "Enqueued", "again", "cancel", "enqueue", "enqueue_many", "get", "page", "purge"]


class Enqueued(NamedTuple):
    """The job, and whether it was made now; not so when a key says that it is there already."""

    job: Job
    created: bool


_INSERT = f"""
INSERT INTO jobs.jobs (id, kind, target, state, arguments, creator, owner, max_attempts, unique_key, traceparent, queue, priority,
                       run_time, waits, concurrency_key, pending_key, replay_of, create_time, ready_time, not_before)
SELECT $1, $2, $3, 'QUEUED', $4, $5, $6, $7, $8, $9, $10, $11, coalesce($12, jobs.clock()),
       CASE WHEN $12::timestamptz > jobs.clock() THEN 'TIME' ELSE '' END, $13, $14, $15, jobs.clock(), coalesce($12, jobs.clock()), $12
ON CONFLICT DO NOTHING
RETURNING {COLUMNS}
"""

_KNOWN = f"""
SELECT {COLUMNS} FROM jobs.jobs
 WHERE unique_key = $1 OR (pending_key = $2 AND state IN ('QUEUED', 'RUNNING')) ORDER BY unique_key IS NULL LIMIT 1
"""


async def enqueue(tx: Tx, order: Order) -> Enqueued:
    """Writes a job into the caller's transaction; with a key that is taken, returns the job that has it.

    Raises:
        Invalid: the payload is too large.
    """
    for _ in range(5):  # the one that stood in the way may end in between
        row = await tx.row(_INSERT, *_values(order))
        if row is not None:
            made = rows.job(row)
            await rows.moved(tx, [made])
            await rows.wake(tx)
            return Enqueued(made, created=True)
        known = await tx.row(_KNOWN, order.idempotency_key, order.pending_key)
        if known is not None:
            return Enqueued(rows.job(known), created=False)
    raise RuntimeError("a key is taken by a job that cannot be seen")


def _values(order: Order) -> tuple[Any, ...]:
    arguments = dict(order.arguments)
    if len(orjson.dumps(arguments)) > MOST_PAYLOAD:
        raise Invalid.fields([Violation("job.payload", f"over {MOST_PAYLOAD} bytes: pass a reference")])
    owner = order.owner if order.owner is not None else ("" if order.creator.startswith("schedules/") else order.creator)
    return (
        new_id(), order.kind, order.target, arguments, order.creator, owner, order.max_attempts, order.idempotency_key,
        trace.traceparent(), order.queue, order.priority, order.run_time, order.concurrency_key, order.pending_key, order.replay_of,
    )  # fmt: skip


_INSERT_MANY = f"""
INSERT INTO jobs.jobs (id, kind, target, state, arguments, creator, owner, max_attempts, unique_key, traceparent, queue, priority,
                       run_time, waits, concurrency_key, pending_key, replay_of, create_time, ready_time, not_before)
SELECT id, kind, target, 'QUEUED', arguments, creator, owner, max_attempts, unique_key, traceparent, queue, priority,
       coalesce(at, jobs.clock()), CASE WHEN at > jobs.clock() THEN 'TIME' ELSE '' END, concurrency_key, pending_key, replay_of,
       jobs.clock(), coalesce(at, jobs.clock()), at
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::text[], $6::text[], $7::int[], $8::text[], $9::text[], $10::text[],
              $11::int[], $12::timestamptz[], $13::text[], $14::text[], $15::uuid[])
       AS o (id, kind, target, arguments, creator, owner, max_attempts, unique_key, traceparent, queue, priority, at, concurrency_key,
             pending_key, replay_of)
ON CONFLICT DO NOTHING
RETURNING {COLUMNS}
"""


async def enqueue_many(tx: Tx, orders: Sequence[Order]) -> list[Job]:
    """Writes many jobs with one statement; those whose key is taken are left out. The jobs made."""
    if not orders:
        return []
    columns = zip(*(_values(order) for order in orders), strict=True)
    made = [rows.job(row) for row in await tx.rows(_INSERT_MANY, *(list(column) for column in columns))]
    await rows.moved(tx, made)
    await rows.wake(tx)
    return made


_GET = f"SELECT {COLUMNS} FROM jobs.jobs WHERE id = $1"


async def get(tx: Tx, job_id: uuid.UUID) -> Job | None:
    """A job."""
    row = await tx.row(_GET, job_id)
    return None if row is None else rows.job(row)


SOURCE = Source(
    select=f"SELECT {COLUMNS} FROM jobs.jobs",
    filters={
        "kind": "kind",
        "state": Column("state", values=tuple(State)),
        "target": "target",
        "creator": "creator",
        "queue": "queue",
        "reason": "reason",
        "priority": Column("priority", "int"),
        "create_time": Column("create_time", "time"),
        "start_time": Column("start_time", "time", nullable=True),
        "end_time": Column("end_time", "time", nullable=True),
    },
    orders={
        "create_time": (Part("id", "id", "uuid"),),  # ids are UUIDv7: they rise with time, and their index is there
        "kind": (Part("kind", "kind"),),
        "state": (Part("state", "state"),),
        "target": (Part("target", "target"),),
        "queue": (Part("queue", "queue"),),
        "start_time": (Part("start_time", "start_time", "time", nullable=True),),
        "end_time": (Part("end_time", "end_time", "time", nullable=True),),
    },
    key=(Part("id", "id", "uuid"),),
    default="create_time desc",
)
_SCOPES = "($1 OR target = ANY($2) OR target = ANY($3) OR target LIKE ANY($4))"
_LIST = f"SELECT {COLUMNS} FROM jobs.jobs WHERE {_SCOPES} AND ($5::uuid IS NULL OR id < $5) AND (%s) ORDER BY id DESC LIMIT $6"


class Seen(NamedTuple):
    """The scopes in which somebody may do something."""

    everything: bool
    exact: Sequence[str]
    trees: Sequence[str]

    def arguments(self) -> tuple[Any, ...]:
        """For the first four parameters of a statement."""
        return self.everything, list(self.exact), list(self.trees), [_escape(tree) + "/%" for tree in self.trees]

    def narrow(self, where: Where) -> None:
        """Keeps the jobs whose target lies in the scopes."""
        if not self.everything:
            where.add("target = ANY({}::text[]) OR target = ANY({}::text[]) OR target LIKE ANY({}::text[])", *self.arguments()[1:])


async def page(tx: Tx, seen: Seen, *, before: uuid.UUID | None, limit: int, where: str = "true", args: Sequence[Any] = ()) -> list[Job]:
    """Jobs whose target lies in the scopes, newest first; `where` is a parsed filter whose parameters start at $7."""
    return [rows.job(row) for row in await tx.rows(_LIST % where, *seen.arguments(), before, limit, *args)]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


_CANCEL = f"""
UPDATE jobs.jobs SET cancel = true, state = CASE WHEN state = 'QUEUED' THEN 'CANCELLED' ELSE state END,
       reason = CASE WHEN state = 'QUEUED' THEN 'CANCELLED' ELSE reason END,
       end_time = CASE WHEN state = 'QUEUED' THEN jobs.clock() END, waits = '', dispatch_time = NULL,
       keep_until = CASE WHEN state = 'QUEUED' THEN jobs.clock() + interval '30 days' END
 WHERE id = $1 AND state IN ('QUEUED', 'RUNNING')
RETURNING {COLUMNS}
"""


async def cancel(tx: Tx, job_id: uuid.UUID) -> Job | None:
    """Cancels a job: at once while it waits; one that runs is asked to stop and ends by itself. None when it has ended already."""
    row = await tx.row(_CANCEL, job_id)
    if row is None:
        return None
    found = rows.job(row)
    await rows.moved(tx, [found])
    await tx.execute("SELECT pg_notify($1, $2)", CANCEL, str(job_id))
    return found


_AGAIN = f"""
UPDATE jobs.jobs SET state = 'QUEUED', cancel = false, attempts = 0, run_time = jobs.clock(), ready_time = jobs.clock(), waits = '',
       dispatch_time = NULL, percent = 0, message = '', error = '', reason = '', result = NULL, end_time = NULL, start_time = NULL,
       keep_until = NULL, result_until = NULL
 WHERE id = $1 AND state IN ('FAILED', 'CANCELLED', 'DEAD')
   AND NOT EXISTS (SELECT 1 FROM jobs.jobs p WHERE p.pending_key = jobs.jobs.pending_key AND p.state IN ('QUEUED', 'RUNNING'))
RETURNING {COLUMNS}
"""


async def again(tx: Tx, job_id: uuid.UUID) -> Job | None:
    """Queues an ended job again, to go on at the step that failed. None when it succeeded, has not ended, or its like is pending."""
    row = await tx.row(_AGAIN, job_id)
    if row is None:
        return None
    found = rows.job(row)
    await rows.moved(tx, [found])
    await rows.wake(tx)
    return found


_PURGEABLE = f"""
SELECT id FROM jobs.jobs WHERE {_SCOPES} AND state NOT IN ('QUEUED', 'RUNNING') AND (%s) ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED
"""


async def purge(tx: Tx, seen: Seen, *, limit: int, where: str = "true", args: Sequence[Any] = (), dry_run: bool = False) -> list[uuid.UUID]:
    """Removes ended jobs; `where` is a parsed filter whose parameters start at $6. The ids."""
    found = [row["id"] for row in await tx.rows(_PURGEABLE % where, *seen.arguments(), limit, *args)]
    if not dry_run:
        await tx.execute("DELETE FROM jobs.jobs WHERE id = ANY($1)", found)
    return found
