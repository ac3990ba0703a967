"""Audit: who did what, on what, when, from where, and how it ended; kept with what it tells of.

`Auditor` and `PgUnits` are the pipeline's audit and units: a WRITE's record commits with the change and the answer to
its request id, or neither does; denials and failures have a transaction of their own; what leaves PostgreSQL leaves
its intent before and its outcome after, and an intent whose process died becomes UNKNOWN; READs are buffered for at most a
second, and losses are counted. Work that is no RPC records an `Entry` through the same Auditor. Fields marked
`secret` are redacted before anything is stored. It refuses updates of ended records; hash chain columns wait for the
sealer, which runs later and elsewhere. This lib owns schema `audit`: call `prepare(database)` at start.
"""

from __future__ import annotations

from pathlib import Path

from libs.audit.auditor import Auditor
from libs.audit.entry import Entry, Outcome
from libs.audit.units import PgUnits
from libs.pg import Database, migrate

__all__ = ["Auditor", "Entry", "Outcome", "PgUnits", "prepare"]

SCHEMA = "audit"


async def prepare(database: Database) -> None:
    """Brings schema `audit` up to date."""
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")
