"""How long ended jobs, their results and the history of schedules are kept."""

from __future__ import annotations

from libs.pg import Tx

_JOBS = """
DELETE FROM jobs.jobs WHERE id IN (
    SELECT id FROM jobs.jobs WHERE keep_until < jobs.clock() AND state NOT IN ('QUEUED', 'RUNNING') LIMIT 1000 FOR UPDATE SKIP LOCKED)
"""
_RESULTS = """
UPDATE jobs.jobs SET result = NULL, result_until = NULL WHERE id IN (
    SELECT id FROM jobs.jobs WHERE result_until < jobs.clock() LIMIT 1000 FOR UPDATE SKIP LOCKED)
"""
_FIRINGS = (
    "DELETE FROM jobs.firings WHERE ctid IN (SELECT ctid FROM jobs.firings WHERE start_time < jobs.clock() - interval '90 days' LIMIT 1000)"
)


async def sweep(tx: Tx) -> None:
    """Removes what is older than its time, a part at a time."""
    for sql in (_JOBS, _RESULTS, _FIRINGS):
        await tx.execute(sql)
