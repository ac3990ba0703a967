"""What `make doctor` shows of background work: queues with their figures, and jobs that do not move."""

from __future__ import annotations

import asyncio

from libs.jobs import queues
from libs.pg import Database

_SECONDS = 10.0
_MOST = 20  # stuck jobs shown
_STUCK = """
SELECT id, kind, target, state, CASE
         WHEN state = 'RUNNING' AND lease_time < jobs.clock() THEN 'its worker is gone and nobody takes it back: is a worker up?'
         WHEN state = 'RUNNING' THEN 'was asked to stop and does not'
         WHEN state = 'DEAD' THEN 'failed too often: ' || left(error, 100)
         WHEN waits = 'KIND' THEN 'no worker knows its kind'
         WHEN waits = 'KEY' THEN 'waits for its concurrency key: ' || coalesce(concurrency_key, '')
         WHEN EXISTS (SELECT 1 FROM jobs.queues q WHERE q.name = queue AND q.paused) THEN 'its queue is paused'
         WHEN dispatch_time IS NOT NULL THEN 'its message was sent long ago: are workers busy?'
         ELSE 'is ready for long: is a worker up?' END AS why
  FROM jobs.jobs
 WHERE (state = 'RUNNING' AND (lease_time < jobs.clock() OR cancel)) OR state = 'DEAD'
    OR (state = 'QUEUED' AND (waits = 'KIND' OR (waits <> 'TIME' AND ready_time < jobs.clock() - interval '2 minutes')))
 ORDER BY state DESC, id LIMIT $1 -- the dead, which are counted above, come last
"""


async def lines(database: Database) -> list[str]:
    """One line each; those that begin with `!` want a look."""
    async with asyncio.timeout(_SECONDS), database.transaction(readonly=True) as tx:
        figures = await queues.figures(tx)
        stuck = await tx.rows(_STUCK, _MOST)
    said = ["  queue            ready  waiting  sent  running  dead  oldest"]
    for found in figures:
        numbers = f"{found.ready:>5}  {found.waiting:>7}  {found.dispatched:>4}  {found.running:>7}  {found.dead:>4}"
        paused = f"  PAUSED by {found.pauser}" if found.paused else ""
        said.append(f"{'!' if paused else ' '}   {found.name:<14} {numbers}  {found.oldest_seconds:>5.0f}s{paused}")
    return said + [f"! jobs/{job['id']} {job['kind']} {job['target']} {job['state']}: {job['why']}" for job in stuck]
