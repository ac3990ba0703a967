"""PostgreSQL: a pool, transactions, migrations, outbox, lists with filter, order and pages; the only home of asyncpg.

`Database.connect` makes the pool, `database.transaction()` one `Tx` whose work commits as a whole or not at all, and
`tx(call)` the one transaction of a call, which the pipeline commits together with its audit record and its idempotency
answer. `migrate` brings one owner's schema up to date from plain SQL files. jsonb is plain Python on this side. The
database away, a deadlock or a lock that does not come is `Unavailable`; violated constraints pass through by name. It
refuses a COMMIT that the server turned into a ROLLBACK, changed migrations, and values inside SQL text: parameters only.
"""

from __future__ import annotations

from asyncpg import Record
from asyncpg.exceptions import CheckViolationError as CheckViolation
from asyncpg.exceptions import ForeignKeyViolationError as ForeignKeyViolation
from asyncpg.exceptions import UniqueViolationError as UniqueViolation

from libs.pg.database import Database
from libs.pg.etag import check_etag, etag
from libs.pg.migrations import MigrationError, migrate
from libs.pg.tx import Transaction, Tx
from libs.pg.unit import tx

__all__ = [
    "CheckViolation",
    "Database",
    "ForeignKeyViolation",
    "MigrationError",
    "Record",
    "Transaction",
    "Tx",
    "UniqueViolation",
    "check_etag",
    "etag",
    "migrate",
    "tx",
]
