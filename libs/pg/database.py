"""The pool, and connections outside it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson

from libs import log
from libs.faults import Unavailable
from libs.pg.errors import RETRY_AFTER, away, meaning
from libs.pg.listen import Listener
from libs.pg.tx import Transaction, Tx

_log = log.get("libs.pg")
_ACQUIRE = 5.0  # seconds that a call waits for a connection
_COMMAND = 30.0
_CLOSE = 5.0
_SETTINGS = {
    "lock_timeout": "5s",
    "statement_timeout": "25s",
    "idle_in_transaction_session_timeout": "30s",
    "jit": "off",  # our statements are short: compiling them costs more than running them
    "timezone": "UTC",
}


class Database:
    """A pool of connections to one PostgreSQL database."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], dsn: str, application_name: str) -> None:
        self._pool = pool
        self._dsn = dsn
        self._application_name = application_name
        self._listener: Listener | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @classmethod
    async def connect(cls, dsn: str, *, application_name: str, min_size: int = 1, max_size: int = 10, patience: float = 15.0) -> Database:
        """A pool, ready.

        Args:
            dsn: `postgresql://user:password@host/database`, or with `?host=/folder` of a socket.
            application_name: what PostgreSQL shows in pg_stat_activity.
            min_size: connections opened at once and kept.
            max_size: most connections; a call waits at most 5 s for one, then gets Unavailable.
            patience: seconds to wait for a server that is still starting; Unavailable after.
        """
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            try:
                pool = await asyncpg.create_pool(
                    dsn, min_size=min_size, max_size=max_size, timeout=_ACQUIRE, command_timeout=_COMMAND, init=_prepare, reset=_keep,
                    server_settings={**_SETTINGS, "application_name": application_name},
                )  # fmt: skip
            except (OSError, TimeoutError, asyncpg.PostgresError) as error:
                if not (away(error) or isinstance(error, OSError | TimeoutError)) or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(random.uniform(0.05, 0.3))  # noqa: S311 -- jitter
            else:
                return cls(pool, dsn, application_name)

    async def close(self) -> None:
        """Ends listeners and connections; those still busy after 5 s are cut."""
        if self._listener:
            await self._listener.close()
        if self._ending:
            await asyncio.wait(self._ending, timeout=_CLOSE)
        try:
            async with asyncio.timeout(_CLOSE):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def begin(self, *, readonly: bool = False) -> Transaction:
        """A transaction that the caller must end; `transaction()` does it by itself."""
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        with meaning():
            try:
                connection: Any = await self._pool.acquire(timeout=_ACQUIRE)
            except TimeoutError as error:
                raise Unavailable("too many at once; try again", {"database": "busy"}, retry_after=RETRY_AFTER) from error

        async def release() -> None:
            await self._pool.release(connection, timeout=_CLOSE)

        transaction = Transaction(connection, release)
        if task and task.cancelling() > asked:  # wait_for of Python 3.11 loses a cancel that comes with the connection
            await release()
            raise asyncio.CancelledError
        try:
            with meaning(connection):
                await connection.execute("begin read only" if readonly else "begin")
        except BaseException:
            await transaction.rollback()
            raise
        return transaction

    @asynccontextmanager
    async def transaction(self, *, readonly: bool = False) -> AsyncIterator[Tx]:
        """A Tx, committed when the block ends well and rolled back otherwise."""
        transaction = await self.begin(readonly=readonly)
        try:
            yield transaction.tx
        except BaseException:
            await self.finish("pg rollback", transaction.rollback())
            raise
        await self.finish("pg commit", transaction.commit())

    async def finish(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Ends a transaction to the end even when the waiting task is cancelled: half a commit would be an unknown one."""
        task = asyncio.create_task(work, name=name)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    @asynccontextmanager
    async def connection(self, purpose: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A connection outside the pool, for what must hold one: locks, migrations, listening. Without statement timeout."""
        connection = await self.dedicated(purpose)
        try:
            yield connection
        finally:
            connection.terminate()

    async def dedicated(self, purpose: str) -> asyncpg.Connection[asyncpg.Record]:
        """As `connection`, for the caller to terminate."""
        settings = {**_SETTINGS, "statement_timeout": "0", "application_name": f"{self._application_name} {purpose}"}
        with meaning():
            connection = await asyncpg.connect(self._dsn, timeout=_ACQUIRE, server_settings=settings)
            await _prepare(connection)
        return connection

    async def listen(self, channel: str, callback: Callable[[str], Awaitable[None] | None]) -> None:
        """Calls back with each NOTIFY payload until `close`, through outages.

        It is called with `""` after each connect, the first included: anything may have happened meanwhile.
        """
        if self._listener is None:
            self._listener = Listener(self.dedicated)
        await self._listener.add(channel, callback)

    async def ping(self) -> None:
        """Answers when the server does; Unavailable otherwise."""
        async with self.transaction(readonly=True) as tx:
            await tx.value("select 1")


async def _prepare(connection: Any) -> None:
    # binary jsonb is one version byte and the text: orjson reads and writes bytes without a detour over str
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", format="binary", encoder=lambda value: b"\x01" + orjson.dumps(value), decoder=_decoded
    )


def _decoded(data: bytes) -> Any:
    return orjson.loads(data[1:])


async def _keep(_connection: Any) -> None:
    """Nothing of ours outlives a transaction (SET LOCAL only), so the reset round trip of each release is saved."""
