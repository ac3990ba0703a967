"""Which jobs may go into the stream now: a bounded window, filled in turns over queues and tenants."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from libs.jobs.domain import LONGEST_WAIT
from libs.pg import Record, Tx

_READY = "state = 'QUEUED' AND waits = '' AND dispatch_time IS NULL"
_LEAD = "SELECT pg_try_advisory_xact_lock(hashtextextended('kubegems jobs dispatch', 0))"

# The time of delayed jobs has come.
_DUE = """
UPDATE jobs.jobs SET waits = '', ready_time = run_time
 WHERE id IN (SELECT id FROM jobs.jobs WHERE state = 'QUEUED' AND waits = 'TIME' AND run_time <= jobs.clock()
               ORDER BY run_time LIMIT 2000 FOR UPDATE SKIP LOCKED)
"""

# A worker that knows their kind has come.
_KNOWN = """
UPDATE jobs.jobs SET waits = ''
 WHERE id IN (SELECT id FROM jobs.jobs WHERE state = 'QUEUED' AND waits = 'KIND' AND kind = ANY($1) LIMIT 2000 FOR UPDATE SKIP LOCKED)
"""

# The first that waits for a key which nobody holds: one probe per key, however many wait for it.
_FREED = """
WITH RECURSIVE keys AS (
    (SELECT concurrency_key AS key FROM jobs.jobs WHERE state = 'QUEUED' AND waits = 'KEY' ORDER BY concurrency_key LIMIT 1)
    UNION ALL
    (SELECT n.key FROM keys k, LATERAL (SELECT concurrency_key AS key FROM jobs.jobs
       WHERE state = 'QUEUED' AND waits = 'KEY' AND concurrency_key > k.key ORDER BY concurrency_key LIMIT 1) AS n))
UPDATE jobs.jobs SET waits = ''
 WHERE id IN (
    SELECT f.id FROM keys k, LATERAL (
        SELECT id FROM jobs.jobs WHERE state = 'QUEUED' AND waits = 'KEY' AND concurrency_key = k.key
         ORDER BY priority DESC, id LIMIT 1) AS f
     WHERE NOT EXISTS (SELECT 1 FROM jobs.jobs r WHERE r.concurrency_key = k.key AND r.state = 'RUNNING')
       AND NOT EXISTS (SELECT 1 FROM jobs.jobs d WHERE d.concurrency_key = k.key AND d.state = 'QUEUED' AND d.dispatch_time IS NOT NULL)
       AND NOT EXISTS (SELECT 1 FROM jobs.jobs w WHERE w.concurrency_key = k.key AND w.state = 'QUEUED' AND w.waits = ''))
"""

_SENT = "SELECT count(*) FROM jobs.jobs WHERE state = 'QUEUED' AND dispatch_time IS NOT NULL"

# A loose index scan finds the (queue, tenant) pairs that have something ready, however much that is. Each pair's next
# job has the turn that follows what the pair has under way: who has least goes first, so nobody waits behind a flood.
_PICK = f"""
WITH RECURSIVE lanes AS (
    (SELECT queue, tenant FROM jobs.jobs WHERE {_READY} ORDER BY queue, tenant LIMIT 1)
    UNION ALL
    (SELECT n.queue, n.tenant FROM lanes l, LATERAL (SELECT queue, tenant FROM jobs.jobs
       WHERE {_READY} AND (queue, tenant) > (l.queue, l.tenant) ORDER BY queue, tenant LIMIT 1) AS n)),
busy AS (
    SELECT queue, tenant, sum(n) AS n FROM (
        SELECT queue, tenant, count(*) AS n FROM jobs.jobs WHERE state = 'RUNNING' GROUP BY queue, tenant
        UNION ALL
        SELECT queue, tenant, count(*) AS n FROM jobs.jobs WHERE state = 'QUEUED' AND dispatch_time IS NOT NULL GROUP BY queue, tenant
    ) AS b GROUP BY queue, tenant),
turns AS (
    SELECT c.id, coalesce(b.n, 0) + row_number() OVER (PARTITION BY l.queue, l.tenant ORDER BY c.priority DESC, c.id) AS turn
      FROM lanes l LEFT JOIN busy b ON b.queue = l.queue AND b.tenant = l.tenant, LATERAL (
        SELECT id, priority FROM jobs.jobs
         WHERE {_READY} AND queue = l.queue AND tenant = l.tenant ORDER BY queue, tenant, priority DESC, id LIMIT $1) AS c
     WHERE NOT EXISTS (SELECT 1 FROM jobs.queues q WHERE q.name = l.queue AND q.paused)),
chosen AS (SELECT id, turn FROM turns ORDER BY turn, id LIMIT $1)
SELECT j.* FROM (SELECT id FROM chosen ORDER BY turn, id) AS c CROSS JOIN LATERAL (
    SELECT id, queue, attempts, dispatch, kind, concurrency_key FROM jobs.jobs
     WHERE id = c.id AND {_READY} FOR UPDATE SKIP LOCKED) AS j
"""

_PARK = "UPDATE jobs.jobs SET waits = $2 WHERE id = ANY($1)"
_HELD = """
SELECT concurrency_key FROM jobs.jobs WHERE concurrency_key = ANY($1) AND state = 'RUNNING'
UNION SELECT concurrency_key FROM jobs.jobs WHERE concurrency_key = ANY($1) AND state = 'QUEUED' AND dispatch_time IS NOT NULL
"""
_TAKE = "UPDATE jobs.jobs SET dispatch = dispatch + 1, dispatch_time = jobs.clock() WHERE id = ANY($1)"


class Message(NamedTuple):
    """One message to send."""

    job: uuid.UUID
    queue: str
    attempt: int
    dispatch: int


class Taken(NamedTuple):
    """What may be sent now.

    Attributes:
        more: there was more than the room for it, or another dispatcher is at it: look again when there is room.
    """

    messages: list[Message]
    more: bool


async def release(tx: Tx, known: Sequence[str]) -> None:
    """Lets go what waited for its time, a key or a worker that knows the kind."""
    await tx.execute(_DUE)
    await tx.execute(_KNOWN, list(known))
    await tx.execute(_FREED)


async def take(tx: Tx, *, window: int, known: Sequence[str], least: int = 1, releasing: bool = True) -> Taken:
    """What may be sent now, so that at most `window` messages are under way; nothing while another dispatcher is at it.

    Args:
        tx: the transaction.
        window: messages under way at most.
        known: kinds that workers know.
        least: with less room than this nothing is looked for.
        releasing: first lets go what waited and need not any more.
    """
    if not await tx.value(_LEAD):
        return Taken([], more=True)
    if releasing:
        await release(tx, known)
    room = window - await tx.value(_SENT)
    if room < least:
        return Taken([], more=True)
    picked = await tx.rows(_PICK, room)
    fit = await _fit(tx, picked, set(known))
    if fit:
        await tx.execute(_TAKE, [row["id"] for row in fit])
    return Taken([Message(row["id"], row["queue"], row["attempts"] + 1, row["dispatch"] + 1) for row in fit], more=len(picked) >= room)


async def _fit(tx: Tx, picked: list[Record], known: set[str]) -> list[Record]:
    """Those that can run; the others wait for a key or a kind."""
    keys = {row["concurrency_key"] for row in picked} - {None}
    held = {row["concurrency_key"] for row in await tx.rows(_HELD, list(keys))} if keys else set()
    fit, blocked, unknown = [], [], []
    for row in picked:
        key = row["concurrency_key"]
        if row["kind"] not in known:
            unknown.append(row["id"])
        elif key in held:
            blocked.append(row["id"])
        else:
            held |= {key} - {None}
            fit.append(row)
    for ids, waits in ((blocked, "KEY"), (unknown, "KIND")):
        if ids:
            await tx.execute(_PARK, ids, waits)
    return fit


_UNSENT = """
UPDATE jobs.jobs j SET dispatch_time = NULL FROM unnest($1::uuid[], $2::bigint[]) AS m (id, dispatch)
 WHERE j.id = ANY($1) AND j.id = m.id AND j.dispatch = m.dispatch AND j.state = 'QUEUED'
"""


async def unsent(tx: Tx, messages: Sequence[tuple[uuid.UUID, int]]) -> int:
    """Takes back what the broker may not have: it is sent again under a new number, and the old one is refused. How many."""
    return await tx.execute(_UNSENT, [m[0] for m in messages], [m[1] for m in messages])


async def sent(tx: Tx) -> dict[uuid.UUID, int]:
    """(job → dispatch) of what should be in the stream."""
    rows = await tx.rows("SELECT id, dispatch FROM jobs.jobs WHERE state = 'QUEUED' AND dispatch_time IS NOT NULL LIMIT 50000")
    return {row["id"]: row["dispatch"] for row in rows}


_CLAMP_LEASES = """
UPDATE jobs.jobs SET lease_time = jobs.clock() + $1::interval
 WHERE state = 'RUNNING' AND lease_time > jobs.clock() + $1::interval * 2
"""
_CLAMP_TRIES = """
UPDATE jobs.jobs SET run_time = greatest(jobs.clock(), not_before)
 WHERE state = 'QUEUED' AND waits = 'TIME' AND run_time > coalesce(not_before, '-infinity')
   AND run_time > jobs.clock() + CASE WHEN attempts = 0 THEN interval '1 minute' ELSE $1::interval END
"""


async def clamp(tx: Tx, lease: timedelta) -> None:
    """After the clock was set back: no lease and no back-off lies further ahead than it can have been meant."""
    await tx.execute(_CLAMP_LEASES, lease)
    await tx.execute(_CLAMP_TRIES, LONGEST_WAIT)
