"""A database with schema `jobs`, and a desk that plays the broker: messages can be doubled, late or lost on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from kubegems.jobs.v1 import events_pb2
from libs import jobs
from libs.jobs import claims, store, window
from libs.jobs.domain import Job, Order
from libs.jobs.kind import Kind, kinds
from libs.jobs.runner import Runner
from libs.pg import Database
from tests.kit.data import FreshDatabase


@pytest.fixture(scope="module")
async def opened(database: FreshDatabase) -> AsyncIterator[Database]:
    connected = await Database.connect(database.dsn, application_name="jobs test")
    await jobs.prepare(connected)
    yield connected
    await connected.close()


@dataclass
class Desk:
    """The engine by hand."""

    database: Database
    known: dict[str, Kind] = field(default_factory=dict)
    allowed: bool | Exception = True
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def kind(self, handler: Any = None, *, name: str = "count", **more: Any) -> Kind:
        """Makes a kind known."""
        given: dict[str, Any] = {
            "targets": "clusters",
            "depth": 2,
            "permission": "jobs.jobs.create",
            "timeout": timedelta(seconds=5),
        } | more
        kind = Kind(name, handler=handler, **given)
        self.known = kinds(*[k for k in self.known.values() if k.name != name], kind)
        return kind

    def runner(self, **more: Any) -> Runner:
        """A runner of the kinds known by now."""

        async def may(username: str, permission: str, target: str) -> bool:
            self.asked.append((username, permission, target))
            if isinstance(self.allowed, Exception):
                raise self.allowed
            return self.allowed

        return Runner(self.database, self.known, allowed=may, worker=more.pop("worker", "w1"), **more)

    async def enqueue(self, kind: str = "count", **more: Any) -> Job:
        """Places an order."""
        given: dict[str, Any] = {"kind": kind, "target": "clusters/a", "creator": "users/dev", "max_attempts": 3} | more
        order = Order(**given)
        async with self.database.transaction() as tx:
            return (await store.enqueue(tx, order)).job

    async def messages(self, size: int = 100, known: list[str] | None = None) -> list[events_pb2.JobDispatch]:
        """What the dispatcher would send now."""
        async with self.database.transaction() as tx:
            taken = (await window.take(tx, window=size, known=sorted(self.known) if known is None else known)).messages
        return [events_pb2.JobDispatch(job=str(m.job), attempt=m.attempt, dispatch=m.dispatch) for m in taken]

    async def work(self, **more: Any) -> None:
        """Does all that can be done now."""
        runner = self.runner(**more)
        while found := await self.messages():
            for message in found:
                await runner.handle(message)

    async def get(self, job: Job) -> Job:
        """A job as it is now."""
        async with self.database.transaction() as tx:
            found = await store.get(tx, job.id)
        assert found is not None
        return found

    async def cancel(self, job: Job) -> Job | None:
        """A user cancels."""
        async with self.database.transaction() as tx:
            return await store.cancel(tx, job.id)

    async def due_now(self) -> None:
        """All waits for time are over."""
        await self.sql("UPDATE jobs.jobs SET run_time = now() WHERE state = 'QUEUED'")

    async def die(self, job: Job) -> None:
        """The runner that holds a job is gone, and its lease has run out."""
        await self.sql("UPDATE jobs.jobs SET lease_time = now() - interval '1 second' WHERE id = $1", job.id)
        async with self.database.transaction() as tx:
            await claims.reap(tx)

    async def clock(self, seconds: float) -> None:
        """The engine's clock jumps to so many seconds off."""
        async with self.database.transaction() as tx:
            await tx.execute(f"CREATE OR REPLACE FUNCTION jobs.clock() RETURNS timestamptz LANGUAGE sql STABLE AS {_later(seconds)}")

    async def sql(self, text: str, *args: Any) -> Any:
        """First value of a statement."""
        async with self.database.transaction() as tx:
            return await tx.value(text, *args)


def _later(seconds: float) -> str:
    return f"$$ SELECT now() + interval '{seconds} seconds' $$"


@pytest.fixture
async def desk(opened: Database) -> Desk:
    async with opened.transaction() as tx:
        await tx.execute("TRUNCATE jobs.jobs, jobs.claims, jobs.steps, jobs.outbox, jobs.schedules, jobs.firings, jobs.queues CASCADE")
        await tx.execute("INSERT INTO jobs.queues (name) VALUES ('default')")
        await tx.execute("CREATE OR REPLACE FUNCTION jobs.clock() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now()'")
    return Desk(opened)
