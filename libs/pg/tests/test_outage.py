"""PostgreSQL killed and started again under a Database."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deploy.local import part as parts
from libs.faults import Unavailable
from libs.pg import Database
from tests.kit.data import DatabaseServer, postgres_server


@pytest.fixture
async def server(tmp_path: Any) -> AsyncIterator[DatabaseServer]:
    """A PostgreSQL of one's own, to be killed."""
    async with postgres_server(tmp_path) as found:
        yield found


async def test_killed_and_started_again(server: DatabaseServer, eventually: Any) -> None:
    """Calls in the outage get Unavailable at once; what was acknowledged is there afterwards; listening goes on."""
    database = await Database.connect(server.dsn, application_name="outage", max_size=4)
    heard: list[str] = []
    await database.listen("news", heard.append)
    async with database.transaction() as tx:
        await tx.execute("create table things (n int primary key)")

    async def write(n: int) -> bool:
        try:
            async with database.transaction() as tx:
                await tx.execute("insert into things values ($1)", n)
        except Unavailable:
            return False
        return True

    acknowledged = {n for n in range(20) if await write(n)}
    server.process.kill()
    await server.process.wait()
    assert not any(await asyncio.gather(*(write(n) for n in range(20, 30))))
    async with parts.running(server.part):
        await eventually(lambda: write(100), within=10, what="writes again")
        async with database.transaction(readonly=True) as tx:
            assert {row["n"] for row in await tx.rows("select n from things")} == acknowledged | {100}
        await eventually(lambda: heard == ["", ""], within=10, what="listens again")
        async with database.transaction() as tx:
            await tx.execute("select pg_notify('news', 'back')")
        await eventually(lambda: heard[-1] == "back", within=5)
        await database.close()


async def test_a_rollback_that_is_not_answered_holds_nobody_up(server: DatabaseServer) -> None:
    """After two seconds the connection is given up, and the next transaction gets another."""
    database = await Database.connect(server.dsn, application_name="still", max_size=1)

    async def fails() -> None:
        async with database.transaction() as tx:
            pids.append(await tx.value("select pg_backend_pid()"))
            os.kill(pids[0], signal.SIGSTOP)
            raise ZeroDivisionError

    pids: list[int] = []
    try:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(fails(), 15)
        async with asyncio.timeout(10), database.transaction() as tx:
            assert await tx.value("select pg_backend_pid()") != pids[0]
    finally:
        os.kill(pids[0], signal.SIGCONT)
        await database.close()
