"""Migrations run once, in order, and refuse a changed past."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from libs.faults import Unavailable
from libs.pg import Database, MigrationError, migrate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two migrations."""
    (tmp_path / "0001_make.sql").write_text("create table t (n int); insert into t values (1);")
    (tmp_path / "0002_more.sql").write_text("update t set n = n + 1;")
    return tmp_path


async def test_applied_once(pg: Database, folder: Path) -> None:
    """The first run applies all, the second nothing, a new file alone."""
    assert await migrate(pg, "once", folder) == ["0001_make.sql", "0002_more.sql"]
    assert await migrate(pg, "once", folder) == []
    (folder / "0003_again.sql").write_text("update t set n = n + 1")
    assert await migrate(pg, "once", folder) == ["0003_again.sql"]
    async with pg.transaction() as tx:
        assert await tx.value("select n from once.t") == 3


async def test_concurrent_migrators(database: Any, folder: Path) -> None:
    """Of several processes starting at once each migration is applied by exactly one; all end well."""
    databases = [await Database.connect(database.dsn, application_name=f"m{i}") for i in range(5)]
    applied = await asyncio.gather(*(migrate(d, "race", folder) for d in databases))
    assert sorted(name for names in applied for name in names) == ["0001_make.sql", "0002_more.sql"]
    async with databases[0].transaction() as tx:
        assert await tx.value("select n from race.t") == 2
    for each in databases:
        await each.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "0001_make.sql").write_text("select 1"), "was changed after it was applied"),
        (lambda f: (f / "0001_make.sql").unlink(), "no longer in the folder"),
        (lambda f: (f / "0000_early.sql").write_text("select 1"), "higher number"),
        (lambda f: (f / "0002_twin.sql").write_text("select 1"), "used once"),
        (lambda f: (f / "3_bad.sql").write_text("select 1"), "NNNN_name"),
    ],
)
async def test_refused(pg: Database, folder: Path, damage: Any, message: str, request: pytest.FixtureRequest) -> None:
    """A changed, missing, late, doubled or misnamed file refuses, and nothing is applied."""
    schema = f"refused_{abs(hash(request.node.name))}"
    await migrate(pg, schema, folder)
    (folder / "0009_next.sql").write_text("create table never ()")
    damage(folder)
    with pytest.raises(MigrationError, match=message):
        await migrate(pg, schema, folder)
    async with pg.transaction() as tx:
        assert await tx.value("select to_regclass($1)", f"{schema}.never") is None


async def test_failed_migration_leaves_nothing(pg: Database, folder: Path) -> None:
    """A file that fails half-way is undone and tried afresh next time."""
    (folder / "0003_bad.sql").write_text("create table half (); select 1/0;")
    with pytest.raises(Exception, match="division by zero"):
        await migrate(pg, "half", folder)
    (folder / "0003_bad.sql").write_text("create table half ();")
    assert await migrate(pg, "half", folder) == ["0003_bad.sql"]


async def test_a_migration_that_meets_a_deadlock_is_tried_again(pg: Database, folder: Path) -> None:
    """It takes tables in its own order while the release before still writes in another."""
    await migrate(pg, "knot", folder)
    (folder / "0003_lock.sql").write_text("create table other ()")
    await migrate(pg, "knot", folder)
    (folder / "0004_both.sql").write_text("alter table t add column a int; alter table other add column a int")

    async def writes() -> None:
        async with pg.transaction() as tx:
            await tx.execute("lock table knot.other in row exclusive mode")
            held.set()
            while not await tx.value("select count(*) from pg_locks where not granted"):
                assert not migrating.done()
                await asyncio.sleep(0.01)
            with contextlib.suppress(Unavailable):
                await tx.execute("insert into knot.t (n) values (1)")  # either of the two may be told to let go

    held = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(writes())
        await held.wait()
        migrating = group.create_task(migrate(pg, "knot", folder))
    assert migrating.result() == ["0004_both.sql"]


async def test_older_release_beside_a_newer(pg: Database, folder: Path) -> None:
    """A process that knows fewer migrations than are applied starts all the same: releases overlap."""
    await migrate(pg, "newer", folder)
    (folder / "0002_more.sql").unlink()
    assert await migrate(pg, "newer", folder) == []


async def test_bad_schema_name(pg: Database, folder: Path) -> None:
    """A schema name is a plain word."""
    with pytest.raises(MigrationError):
        await migrate(pg, "x; drop schema public", folder)
