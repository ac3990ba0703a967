"""Jobs: work that outlives its request, at least once, never lost silently. `docs/jobs.md` is the contract.

PostgreSQL is the truth and holds the backlog; a caller's transaction writes the row (`enqueue(tx, Order(…))`). The
dispatcher keeps a bounded window of (job, attempt, dispatch) messages in JetStream and decides order, fairness and keys;
a runner claims with one UPDATE that raises the fence, keeps a lease by heartbeat, and writes progress and outcome only
while its fence is the newest. A message lost, doubled or late changes nothing: the claim decides, and a reconciler
compares both sides. Handlers may run twice: they look first, then act. Payloads, progress, logs and results hold no
secrets. Exactly once is promised for effects in PostgreSQL alone (`context.effect`), written in the transaction of the
outcome. It refuses kinds with two names or two steps of one name, payloads over 64 KiB, and waits over an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libs.jobs.context import Context
from libs.jobs.domain import GiveUp, Job, LeaseLost, Order, Retry, State
from libs.jobs.kind import Kind, Step, kinds
from libs.jobs.rows import CANCEL, SCHEMA, WAKE
from libs.jobs.store import enqueue, enqueue_many
from libs.pg import Database, migrate

__all__ = [
    "CANCEL", "SCHEMA", "WAKE", "Context", "GiveUp", "Job", "Kind", "Kinds", "LeaseLost", "Order", "Retry", "State", "Step",
    "enqueue", "enqueue_many", "kinds", "prepare",
]  # fmt: skip

Kinds = Mapping[str, Kind]


async def prepare(database: Database) -> None:
    """Brings schema `jobs` up to date."""
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")
