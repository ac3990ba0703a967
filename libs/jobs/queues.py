"""Queues: what waits in them, and whether anything may start."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from libs.jobs import rows
from libs.pg import Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue with its figures."""

    name: str
    paused: bool
    pauser: str
    pause_time: datetime | None
    ready: int
    waiting: int
    dispatched: int
    running: int
    dead: int
    oldest_seconds: float


_FIGURES = """
WITH names AS (SELECT name FROM jobs.queues UNION SELECT DISTINCT queue FROM jobs.jobs WHERE state IN ('QUEUED', 'RUNNING', 'DEAD')),
waiting AS (
    SELECT queue, count(*) FILTER (WHERE waits = '' AND dispatch_time IS NULL) AS ready, count(*) FILTER (WHERE waits <> '') AS waiting,
           count(*) FILTER (WHERE dispatch_time IS NOT NULL) AS dispatched, min(ready_time) FILTER (WHERE waits = '') AS oldest
      FROM jobs.jobs WHERE state = 'QUEUED' GROUP BY queue)
SELECT n.name, coalesce(q.paused, false) AS paused, coalesce(q.pauser, '') AS pauser, q.pause_time, coalesce(w.ready, 0) AS ready,
       coalesce(w.waiting, 0) AS waiting,
       coalesce(w.dispatched, 0) AS dispatched,
       (SELECT count(*) FROM jobs.jobs j WHERE j.queue = n.name AND j.state = 'RUNNING') AS running,
       (SELECT count(*) FROM jobs.jobs j WHERE j.queue = n.name AND j.state = 'DEAD') AS dead,
       greatest(coalesce(extract(epoch FROM jobs.clock() - w.oldest), 0), 0)::float8 AS oldest_seconds
  FROM names n LEFT JOIN jobs.queues q ON q.name = n.name LEFT JOIN waiting w ON w.queue = n.name
"""
SOURCE = Source(
    select=f"SELECT * FROM ({_FIGURES}) q",
    filters={
        "name": "'queues/' || q.name",
        "paused": Column("q.paused", "bool"),
        "running": Column("q.running", "int"),
        "ready": Column("q.ready", "int"),
        "dead": Column("q.dead", "int"),
    },
    orders={
        "name": (Part("q.name", "name"),),
        "running": (Part("q.running", "running", "int"),),
        "ready": (Part("q.ready", "ready", "int"),),
        "dead": (Part("q.dead", "dead", "int"),),
    },
    key=(Part("q.name", "name"),),
    default="name",
)


async def figures(tx: Tx) -> list[Queue]:
    """The queues by name, 500 at most."""
    return [Queue(*row.values()) for row in await tx.rows(f"{SOURCE.select} ORDER BY q.name LIMIT 500")]


async def make(tx: Tx, names: list[str]) -> None:
    """Makes queues known."""
    await tx.execute("INSERT INTO jobs.queues (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", names)


async def pause(tx: Tx, name: str, pauser: str) -> bool:
    """Nothing of the queue starts any more, not even what is in the stream already. False when there is no such queue."""
    sql = "UPDATE jobs.queues SET paused = true, pauser = $2, pause_time = jobs.clock() WHERE name = $1 AND NOT paused"
    return await tx.execute(sql, name, pauser) > 0 or bool(await tx.value("SELECT 1 FROM jobs.queues WHERE name = $1", name))


async def resume(tx: Tx, name: str) -> bool:
    """Jobs of the queue start again. False when there is no such queue."""
    found = await tx.execute("UPDATE jobs.queues SET paused = false, pauser = '', pause_time = NULL WHERE name = $1", name)
    await rows.wake(tx)
    return found > 0
