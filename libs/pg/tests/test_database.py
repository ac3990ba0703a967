"""Transactions commit as a whole or not at all; outages are told as what they are."""

import asyncio
import contextlib
from typing import Any

import pytest

from libs.faults import Unavailable
from libs.pg import Database, UniqueViolation
from libs.pg.tx import NotCommitted


@pytest.fixture(scope="module", autouse=True)
async def _table(pg: Database) -> None:
    async with pg.transaction() as tx:
        await tx.execute("create table things (name text primary key, facts jsonb)")


async def count(pg: Database, name: str) -> int:
    async with pg.transaction(readonly=True) as tx:
        return int(await tx.value("select count(*) from things where name = $1", name))


async def test_commit_and_jsonb(pg: Database) -> None:
    """A block that ends well is committed; jsonb comes back as Python."""
    facts = {"a": [1, "zwei", None], "b": {"c": True}}
    async with pg.transaction() as tx:
        assert await tx.execute("insert into things values ('kept', $1)", facts) == 1
    async with pg.transaction(readonly=True) as tx:
        row = await tx.row("select facts from things where name = 'kept'")
        assert row is not None
        assert row["facts"] == facts
        assert await tx.row("select 1 where false") is None


async def test_rollback(pg: Database) -> None:
    """A block that fails leaves nothing, and what waited for the commit does not run."""
    ran: list[str] = []

    async def fails() -> None:
        async with pg.transaction() as tx:
            tx.after_commit(lambda: ran.append("after"))
            await tx.execute("insert into things values ('gone')")
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    assert await count(pg, "gone") == 0
    assert ran == []


async def test_after_commit(pg: Database) -> None:
    """It runs once the rows are visible to others; its failure changes nothing."""
    seen: list[int] = []

    async def look() -> None:
        seen.append(await count(pg, "told"))

    def broken() -> None:
        raise ValueError

    async with pg.transaction() as tx:
        tx.after_commit(broken)
        tx.after_commit(look)
        await tx.execute("insert into things values ('told')")
        assert seen == []
    assert seen == [1]


async def test_swallowed_failure_is_not_a_commit(pg: Database) -> None:
    """A violation that was caught without a savepoint makes the commit fail loudly; with one, the rest is kept."""

    async def swallows() -> None:
        async with pg.transaction() as tx:
            await tx.execute("insert into things values ('twice')")
            with contextlib.suppress(UniqueViolation):
                await tx.execute("insert into things values ('twice')")

    with pytest.raises(NotCommitted):
        await swallows()
    assert await count(pg, "twice") == 0
    async with pg.transaction() as tx:
        await tx.execute("insert into things values ('twice')")
        with pytest.raises(UniqueViolation):
            async with tx.savepoint():
                await tx.execute("insert into things values ('twice')")
    assert await count(pg, "twice") == 1


async def test_cancelled_inside(pg: Database) -> None:
    """A cancelled call rolls back and gives its connection back."""
    inside = asyncio.Event()

    async def work() -> None:
        async with pg.transaction() as tx:
            await tx.execute("insert into things values ('cancelled')")
            inside.set()
            await tx.value("select pg_sleep(20)")

    for _ in range(8):  # more often than there are connections
        inside.clear()
        task = asyncio.create_task(work(), name="cancelled work")
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await count(pg, "cancelled") == 0


async def test_readonly(pg: Database) -> None:
    """A read-only transaction cannot write."""
    with pytest.raises(Exception, match="read-only"):
        async with pg.transaction(readonly=True) as tx:
            await tx.execute("insert into things values ('no')")


async def test_lost_connection_is_unavailable(pg: Database, connection: Any) -> None:
    """A connection cut under a transaction is Unavailable, with a time to retry; the next transaction works."""

    async def cut() -> None:
        async with pg.transaction() as tx:
            pid = await tx.value("select pg_backend_pid()")
            await connection.execute("select pg_terminate_backend($1)", pid)
            await tx.value("select 1")
            await tx.value("select 1")

    with pytest.raises(Unavailable) as caught:
        await cut()
    assert caught.value.retry_after is not None
    await pg.ping()


async def test_deadlock_is_unavailable(pg: Database) -> None:
    """Of two that block each other one is told to try again, and the other commits."""
    async with pg.transaction() as tx:
        await tx.execute("insert into things values ('left'), ('right')")
    both = asyncio.Barrier(2)

    async def update(first: str, second: str) -> None:
        async with pg.transaction() as tx:
            await tx.execute("update things set facts = '1' where name = $1", first)
            await both.wait()
            await tx.execute("update things set facts = '2' where name = $1", second)

    results = await asyncio.gather(update("left", "right"), update("right", "left"), return_exceptions=True)
    assert [type(r) for r in results if r is not None] == [Unavailable]


async def test_nobody_there() -> None:
    """Connecting to nothing fails after the given patience."""
    with pytest.raises(OSError):
        await Database.connect("postgresql://u:p@127.0.0.1:1/x", application_name="test", patience=0.2)


async def test_listen_survives_a_lost_connection(pg: Database, connection: Any, eventually: Any) -> None:
    """NOTIFY arrives, and again after the listening connection was cut; each connect is told as an empty payload."""
    heard: list[str] = []
    await pg.listen("news", heard.append)
    await connection.execute("select pg_notify('news', 'one')")
    await eventually(lambda: heard == ["", "one"], within=5)
    await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'test listen'")
    await eventually(lambda: heard == ["", "one", ""], within=5)
    await connection.execute("select pg_notify('news', 'two')")
    await eventually(lambda: heard[-1] == "two", within=5)


@pytest.mark.parametrize("code", ["53100", "53200", "53300", "58030"])
async def test_a_server_without_disk_or_memory_is_away(pg: Database, code: str) -> None:
    """That is no mistake of the caller's: it is worth another try."""
    with pytest.raises(Unavailable):
        async with pg.transaction() as tx:
            await tx.execute(f"do $$ begin raise exception 'full' using errcode = '{code}'; end $$")


async def test_a_cancel_that_comes_with_the_connection_counts(pg: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool may lose it: who waits for a connection ends all the same, and the connection is free again."""
    waits, acquire = asyncio.Event(), pg._pool.acquire

    async def loses(**more: Any) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            waits.set()
            await asyncio.sleep(60)
        return await acquire(**more)

    monkeypatch.setattr(pg, "_pool", type("Pool", (), {"acquire": staticmethod(loses), "release": pg._pool.release})())
    task = asyncio.ensure_future(pg.ping())
    await asyncio.wait_for(waits.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
