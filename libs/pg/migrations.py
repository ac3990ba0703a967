"""Migrations: plain SQL files `NNNN_name.sql`, applied in order, once, by whoever comes first."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from libs import log
from libs.pg.database import Database

_log = log.get("libs.pg.migrate")
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_SCHEMA = re.compile(r"[a-z][a-z0-9_]{0,40}")
_TRIES = 5
_WAIT = 120.0  # seconds to wait for another migrator


class MigrationError(Exception):
    """The folder and the database tell different stories; nothing was applied."""


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(database: Database, schema: str, folder: Path) -> list[str]:
    """Brings a schema up to date; the names of the migrations applied now.

    Each file is a transaction of its own, with `search_path` on the schema and a lock timeout of 4 s: a migration that
    waits for a busy table would make everyone else wait behind it, so it gives up and tries again. Concurrent migrators
    wait for one another.

    Args:
        database: where.
        schema: the owner's schema, made when missing.
        folder: holds `0001_name.sql`, `0002_name.sql`, …

    Raises:
        MigrationError: an applied file was changed, removed or inserted between others, or a name is wrong.
    """
    if not _SCHEMA.fullmatch(schema):
        raise MigrationError(f"{schema!r} is not a schema name")
    files = _read(folder)
    async with database.connection(f"migrate {schema}") as connection:
        await _lock(connection, schema)
        await connection.execute(
            f"create schema if not exists {schema};"
            f"create table if not exists {schema}.migrations"
            " (name text primary key, checksum text not null, applied timestamptz not null default now())"
        )
        rows = await connection.fetch(f"select name, checksum from {schema}.migrations order by name")
        pending = _pending(schema, files, {row["name"]: row["checksum"] for row in rows})
        for file in pending:
            await _apply(connection, schema, file)
    return [file.name for file in pending]


def _read(folder: Path) -> list[_File]:
    paths = sorted(folder.glob("*.sql"))
    wrong = [p.name for p in paths if not _NAME.fullmatch(p.name)]
    numbers = [p.name[:4] for p in paths]
    if not paths:
        raise MigrationError(f"{folder} holds no migrations")
    if wrong or len(set(numbers)) != len(numbers):
        raise MigrationError(f"{folder}: names must be NNNN_name.sql with numbers used once: {', '.join(wrong or numbers)}")
    return [_File(p.name, p.read_text()) for p in paths]


def _pending(schema: str, files: list[_File], applied: dict[str, str]) -> list[_File]:
    known = {file.name for file in files}
    last = max(applied, default="")
    for file in files:
        if file.name in applied and applied[file.name] != file.checksum:
            raise MigrationError(f"{schema}: {file.name} was changed after it was applied; write a new migration instead")
        if file.name not in applied and file.name < last:
            raise MigrationError(f"{schema}: {file.name} comes before {last}, which is applied already; give it a higher number")
    newest = max(known)
    for name in applied:
        if name not in known and name < newest:
            raise MigrationError(f"{schema}: {name} is applied but no longer in the folder")
    # applied names beyond our newest belong to a newer release beside us, which keeps to what we understand
    return [file for file in files if file.name not in applied]


async def _lock(connection: Any, schema: str) -> None:
    await connection.execute("set lock_timeout = 0")
    await connection.execute("select pg_advisory_lock(hashtextextended($1, 0))", f"kubegems migrate {schema}", timeout=_WAIT)


async def _apply(connection: Any, schema: str, file: _File) -> None:
    for left in reversed(range(_TRIES)):
        try:
            async with connection.transaction():
                await connection.execute(f"set local lock_timeout = '4s'; set local search_path to {schema}, public")
                await connection.execute(file.sql, timeout=600)
                await connection.execute(f"insert into {schema}.migrations (name, checksum) values ($1, $2)", file.name, file.checksum)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if not left:
                raise
            await asyncio.sleep(random.uniform(0.5, 2))  # noqa: S311 -- jitter
        else:
            _log.info("migration.applied", schema=schema, name=file.name)
            return
