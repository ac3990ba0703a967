"""One transaction, as those who work in it see it (Tx), and as the one who ends it does (Transaction)."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from asyncpg import Record

from libs import log
from libs.pg.errors import gone, meaning

_log = log.get("libs.pg")
_ROLLBACK = 2.0  # seconds; then the connection is given up
AfterCommit = Callable[[], Awaitable[None] | None]


class Tx:
    """Runs statements in one transaction. It cannot commit: that is its owner's."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._after: list[AfterCommit] = []
        self._depth = 0

    async def row(self, sql: str, *args: Any) -> Record | None:
        """The first row, or None."""
        with meaning(self._connection):
            return cast("Record | None", await self._connection.fetchrow(sql, *args))

    async def rows(self, sql: str, *args: Any) -> list[Record]:
        """All rows; bound them in SQL."""
        with meaning(self._connection):
            return cast("list[Record]", await self._connection.fetch(sql, *args))

    async def value(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        with meaning(self._connection):
            return await self._connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> int:
        """Runs a statement; how many rows it touched."""
        with meaning(self._connection):
            return _count(await self._connection.execute(sql, *args))

    async def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each row of arguments, in one go."""
        with meaning(self._connection):
            await self._connection.executemany(sql, rows)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A part that can fail alone: needed around a statement whose constraint violation is caught and survived."""
        self._depth += 1
        name = f"s{self._depth}"
        try:
            await self.execute(f"savepoint {name}")
            try:
                yield
            except BaseException:
                await self.execute(f"rollback to savepoint {name}")
                raise
            await self.execute(f"release savepoint {name}")
        finally:
            self._depth -= 1

    def after_commit(self, work: AfterCommit) -> None:
        """Runs something, plain or async, once the commit is durable; its failure is logged and changes nothing."""
        self._after.append(work)


class NotCommitted(RuntimeError):
    """The server turned COMMIT into ROLLBACK: a failed statement was swallowed on the way."""


class Transaction:
    """The owner's end of a Tx. After `commit` or `rollback` the connection is back in the pool; a second end does nothing."""

    def __init__(self, connection: Any, release: Callable[[], Awaitable[None]]) -> None:
        self.tx = Tx(connection)
        self._connection = connection
        self._release = release
        self._ended = False

    async def commit(self) -> None:
        """Makes it durable, then runs what waits. Unavailable, DeadlineExceeded: nobody knows the outcome, ask by request id."""
        if self._ended:
            return
        self._ended = True
        try:
            with meaning(self._connection):
                status = await self._connection.execute("commit")
        finally:
            await self._release()
        if status != "COMMIT":
            raise NotCommitted("COMMIT was refused: a statement had failed and its error was swallowed")
        for work in self.tx._after:  # noqa: SLF001 -- the two are one thing with two faces
            await _run(work)

    async def rollback(self) -> None:
        """Undoes it; never fails, since a connection that is gone has rolled back too."""
        if self._ended:
            return
        self._ended = True
        try:
            if not gone(self._connection):
                with meaning(self._connection):
                    await self._connection.execute("rollback", timeout=_ROLLBACK)
        except Exception as error:  # noqa: BLE001 -- the server rolls back by itself when the connection goes
            _log.warning("rollback.failed", error=repr(error))
            if not gone(self._connection):
                self._connection.terminate()  # a server that does not answer holds its caller up no longer than this
        finally:
            await self._release()


async def _run(work: AfterCommit) -> None:
    try:
        result = work()
        if inspect.isawaitable(result):
            await result
    except Exception as error:  # noqa: BLE001 -- the commit stands; this is the last place that can tell
        _log.error("after_commit.failed", exc_info=error)


def _count(status: str) -> int:
    last = status.rsplit(" ", 1)[-1]
    return int(last) if last.isdigit() else 0
