"""Jobs: work that outlives its request, at least once, never lost silently.

PostgreSQL is the truth and holds the backlog; a caller's transaction writes the row (`enqueue`). The dispatcher keeps a
bounded window of (job, attempt, dispatch) messages in JetStream; a runner claims with one UPDATE that raises the fence,
keeps a lease by heartbeat, writes progress and the outcome only while its fence is the newest, and retries with
back-off until the job is DEAD, a row for a human. A message lost, doubled or late changes nothing: the claim decides.
Handlers may run twice: they look first, then act. Payloads, progress and results hold no secrets. Exactly once is
promised for effects in PostgreSQL alone, written in the transaction of the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libs.jobs.domain import Kind
from libs.jobs.store import SCHEMA, WAKE
from libs.pg import Database, migrate

__all__ = ["SCHEMA", "WAKE", "Kinds", "prepare"]

Kinds = Mapping[str, Kind]


async def prepare(database: Database) -> None:
    """Brings schema `jobs` up to date."""
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")
