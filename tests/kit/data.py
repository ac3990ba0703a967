"""PostgreSQL for tests: one server, many databases."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from deploy.local import cache
from deploy.local import part as parts
from deploy.local.part import Part
from deploy.local.postgres import Postgres, socket_folder
from deploy.local.process import Process
from deploy.local.scratch import Scratch


@dataclass(frozen=True, slots=True)
class FreshDatabase:
    """A database of one's own."""

    dsn: str
    name: str


@dataclass(slots=True)
class DatabaseServer:
    """The run's PostgreSQL."""

    part: Part
    server: Postgres
    process: Process

    @property
    def dsn(self) -> str:
        """Its database `kubegems`."""
        return self.server.dsn

    @contextlib.asynccontextmanager
    async def fresh(self, name: str) -> AsyncIterator[FreshDatabase]:
        """An empty database, dropped afterwards with whoever is still connected."""
        await self._execute(f'create database "{name}"')
        try:
            yield FreshDatabase(self.server.dsn_of(name), name)
        finally:
            await self._execute(f'drop database if exists "{name}" with (force)')

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.server.dsn_of("postgres"))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def postgres_server(folder: Path) -> AsyncIterator[DatabaseServer]:
    """Runs a PostgreSQL whose data does not outlive the block."""
    sockets = socket_folder()
    with Scratch(cache.postgres_user()) as scratch:
        server = Postgres(scratch.path / "data", folder / "log/postgres.log", folder / "postgres.password", sockets, durable=False)
        part = Part("postgresql", server.command, server.ready, server.prepare)
        try:
            async with parts.running(part) as process:
                yield DatabaseServer(part, server, process)
        finally:
            shutil.rmtree(sockets, ignore_errors=True)
