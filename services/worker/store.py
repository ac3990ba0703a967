"""SQL of the worker's statistics, schema `worker`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from libs.pg import Database, Tx, migrate

SCHEMA = "worker"


async def prepare(database: Database) -> None:
    """Brings schema `worker` up to date."""
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")


_SAMPLE = """
INSERT INTO worker.usage_samples (environment, time, cluster, hard, used, cpu, memory) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING
"""


async def keep_samples(tx: Tx, samples: Sequence[tuple[Any, ...]]) -> None:
    """Keeps samples: (environment, time, cluster, hard, used, cpu or None, memory or None) each; the same again changes nothing."""
    await tx.many(_SAMPLE, samples)


_ARCHIVE = """
INSERT INTO worker.usage_days (environment, day, cluster, samples, used, cpu_average, cpu_peak, memory_average, memory_peak)
SELECT environment, (time AT TIME ZONE 'UTC')::date AS day, (array_agg(cluster ORDER BY time DESC))[1], count(*),
       (array_agg(used ORDER BY time DESC))[1], avg(cpu), max(cpu), avg(memory), max(memory)
  FROM worker.usage_samples WHERE time < date_trunc('day', $1::timestamptz, 'UTC') GROUP BY environment, day
ON CONFLICT (environment, day) DO UPDATE SET samples = excluded.samples, used = excluded.used, cpu_average = excluded.cpu_average,
    cpu_peak = excluded.cpu_peak, memory_average = excluded.memory_average, memory_peak = excluded.memory_peak
    WHERE excluded.samples >= worker.usage_days.samples
"""


async def archive(tx: Tx, now: datetime, keep: timedelta) -> tuple[int, int]:
    """Sums up the days that are over, then lets go of old samples, whole days at a time. (days written, samples removed)."""
    days = await tx.execute(_ARCHIVE, now)
    gone = await tx.execute("DELETE FROM worker.usage_samples WHERE time < date_trunc('day', $1::timestamptz, 'UTC')", now - keep)
    return days, gone


_QUOTA_DAY = """
INSERT INTO worker.quota_days (tenant, cluster, day, hard, allocated, used, environments) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (tenant, cluster, day) DO UPDATE SET hard = excluded.hard, allocated = excluded.allocated, used = excluded.used,
    environments = excluded.environments
"""


async def keep_quotas(tx: Tx, rows: Sequence[tuple[Any, ...]]) -> None:
    """Keeps the newest figures of a day: (tenant, cluster, day, hard, allocated, used, environments) each."""
    await tx.many(_QUOTA_DAY, rows)


_READS = """
DELETE FROM audit.events WHERE id IN (
    SELECT id FROM audit.events WHERE class = 'READ' AND outcome <> 'PENDING' AND sealed_seq IS NULL AND time < $1 ORDER BY time LIMIT $2)
"""


async def trim_reads(tx: Tx, before: datetime, limit: int) -> int:
    """Removes old audit records of reads. What was changed, and what is sealed, is never removed here."""
    return await tx.execute(_READS, before, limit)


async def trim_outbox(tx: Tx, schemas: Sequence[str], before: datetime, limit: int) -> Mapping[str, int]:
    """Removes published messages that their relay has left behind; by schema."""
    gone = {}
    for schema in schemas:
        if not await tx.value("SELECT to_regclass($1) IS NOT NULL", f"{schema}.outbox"):
            continue
        sql = f"DELETE FROM {schema}.outbox WHERE id IN (SELECT id FROM {schema}.outbox WHERE published < $1 LIMIT $2)"
        gone[schema] = await tx.execute(sql, before, limit)
    return gone
