"""What PostgreSQL's failures mean to a caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import asyncpg

from libs.faults import DeadlineExceeded, Unavailable

_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,  # connections, memory, disk
    asyncpg.PostgresSystemError,  # its disk fails
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    ConnectionError,
    FileNotFoundError,  # the socket of a stopped server
)
_BUSY = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    # a migration of a newer release changed a table under a prepared statement; the driver has forgotten it by now
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
RETRY_AFTER = timedelta(seconds=1)


def away(error: BaseException) -> bool:
    """Whether an error says that the server cannot be reached."""
    return isinstance(error, _AWAY)


def gone(connection: Any) -> bool:
    """Whether a connection is closed. A pooled one that was lost is no longer even to be asked."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


@contextmanager
def meaning(connection: Any = None) -> Iterator[None]:
    """Turns failures that are nobody's mistake into faults; all others pass through.

    Args:
        connection: the asyncpg connection in use, if any; when it is closed, its complaints mean that the server went away.
    """
    try:
        yield
    except _AWAY as error:
        raise _unavailable() from error
    except _BUSY as error:
        raise Unavailable("others are changing the same things; try again", {"database": "busy"}, retry_after=RETRY_AFTER) from error
    except (asyncpg.QueryCanceledError, TimeoutError) as error:
        raise DeadlineExceeded("the database took too long") from error
    except asyncpg.InternalClientError as error:
        # the server died in the middle of an answer and the driver lost its place: nothing can be said over this connection
        if connection is not None and not gone(connection):
            connection.terminate()
        raise _unavailable() from error
    except asyncpg.InterfaceError as error:
        if connection is None or not gone(connection):
            raise
        raise _unavailable() from error


def _unavailable() -> Unavailable:
    return Unavailable("the database is away; try again", {"database": "away"}, retry_after=RETRY_AFTER)
