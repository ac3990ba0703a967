"""Publishes outboxes. For hub services alone: it needs PostgreSQL, so `libs.bus` itself does not import it.

One relay at a time works on a schema, whichever process holds its advisory lock, on the very connection that marks
rows: who loses the one loses the other. It takes unpublished rows in order of writing, lane by lane, and marks them
after the broker's ack; a crash in between publishes again under the same id, which streams and consumers know. A lane
that is refused waits alone. The broker away: nothing is lost, nothing is tried in haste. Rows stay 24 h for replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from prometheus_client import Counter, Gauge

from libs import log
from libs.bus import subjects
from libs.bus.bus import Bus
from libs.faults import Fault
from libs.log import trace
from libs.pg import Database
from libs.pg.outbox import CHANNEL

_log = log.get("libs.bus.relay")
_BATCH = 200
_POLL = 1.0
_STATEMENT = 10.0
_PUBLISH = 5.0
_BACKOFF = (0.2, 5.0)
_SWEEP = 600.0
_KEEP_HOURS = 24
_SWEPT_AT_ONCE = 5000
_PUBLISHED = Counter("kubegems_outbox_published", "Rows published.", ["schema", "lane"])
_WAITING = Gauge("kubegems_outbox_oldest_seconds", "Age of the oldest row not yet published.", ["schema"])


@dataclass(slots=True)
class _Lane:
    """When a lane may be tried again."""

    not_before: float = 0.0
    delay: float = _BACKOFF[0]

    def refused(self, now: float) -> None:
        self.not_before = now + self.delay * random.uniform(0.5, 1.5)  # noqa: S311 -- jitter
        self.delay = min(self.delay * 2, _BACKOFF[1])

    def taken(self) -> None:
        self.not_before, self.delay = 0.0, _BACKOFF[0]


@dataclass(slots=True)
class _Schema:
    """One outbox."""

    name: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    lanes: dict[str, _Lane] = field(default_factory=dict)
    swept: float = 0.0


class Relay:
    """Relays the outboxes of some schemas.

    Args:
        database: where they are.
        bus: where to.
        schemas: those with a table `outbox`, made by `libs.pg.outbox.create_outbox`.
    """

    def __init__(self, database: Database, bus: Bus, schemas: Sequence[str]) -> None:
        self._database = database
        self._bus = bus
        self._schemas = {name: _Schema(name) for name in schemas}

    async def run(self) -> None:
        """Relays until cancelled. Spawn it once per process; all replicas may."""
        await self._database.listen(CHANNEL, self._woken)
        async with asyncio.TaskGroup() as group:
            for schema in self._schemas.values():
                group.create_task(self._keep(schema), name=f"relay {schema.name}")

    def _woken(self, payload: str) -> None:
        for schema in self._schemas.values():
            if payload in ("", schema.name):
                schema.wake.set()

    async def _keep(self, schema: _Schema) -> None:
        delay = _BACKOFF[0]
        while True:
            try:
                async with self._database.connection(f"relay {schema.name}") as connection:
                    delay = _BACKOFF[0]
                    await self._lead(connection, schema)
            except Exception as error:  # noqa: BLE001 -- rows wait in PostgreSQL; whatever it is, they are tried again
                _log.warning("relay.interrupted", schema=schema.name, error=repr(error))
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter
            delay = min(delay * 2, _BACKOFF[1])

    async def _lead(self, connection: Any, schema: _Schema) -> None:
        lock = f"kubegems relay {schema.name}"
        while not await connection.fetchval(_LOCK, lock, timeout=_STATEMENT):  # noqa: ASYNC110 -- another process's lock has no event
            await asyncio.sleep(_POLL * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter
        _log.info("relay.leads", schema=schema.name)
        while True:
            schema.wake.clear()
            if not await self.once(connection, schema):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL):
                        await schema.wake.wait()
            await self._sweep(connection, schema)

    async def once(self, connection: Any, schema: _Schema) -> int:
        """One round over all lanes; how many rows were published."""
        now = asyncio.get_running_loop().time()
        lanes = [row["lane"] for row in await connection.fetch(_LANES.format(schema=schema.name), timeout=_STATEMENT)]
        due = [name for name in lanes if schema.lanes.setdefault(name, _Lane()).not_before <= now]
        take = _TAKE.format(schema=schema.name)
        batches = [await connection.fetch(take, name, _BATCH, timeout=_STATEMENT) for name in due]
        published = await asyncio.gather(*(self._publish(schema, batch) for batch in batches if batch))
        done = [id_ for ids in published for id_ in ids]
        if done:
            await connection.execute(_MARK.format(schema=schema.name), done, timeout=_STATEMENT)
        oldest = await connection.fetchval(_OLDEST.format(schema=schema.name), timeout=_STATEMENT) if lanes else None
        _WAITING.labels(schema.name).set(oldest or 0.0)
        return len(done)

    async def _publish(self, schema: _Schema, rows: list[Any]) -> list[Any]:
        """Publishes a lane's rows; the ids of those that the broker has."""
        name = rows[0]["lane"]
        lane = schema.lanes[name]
        send = self._store if subjects.stored(rows[0]["subject"]) else self._hint
        done, fault = await send(rows)
        if fault is None:
            lane.taken()
        else:
            lane.refused(asyncio.get_running_loop().time())
            # one that can never be taken stays, is told here again and again, and lets the others of its lane pass
            _log.warning("relay.refused", schema=schema.name, lane=name, waiting=len(rows) - len(done), error=str(fault))
        _PUBLISHED.labels(schema.name, name).inc(len(done))
        return done

    async def _store(self, rows: list[Any]) -> tuple[list[Any], Fault | None]:
        # sent in order over one connection, so stored in order; what fails is sent again later, under the same id
        results = await asyncio.gather(
            *(self._stored(row) for row in rows),
            return_exceptions=True,
        )
        done = [row["id"] for row, result in zip(rows, results, strict=True) if isinstance(result, int)]
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Fault):
                raise result
        return done, next((result for result in results if isinstance(result, Fault)), None)

    async def _stored(self, row: Any) -> int:
        with trace.span(f"{row['subject']} publish", parent=row["traceparent"] or None, kind=trace.SpanKind.PRODUCER):
            return await self._bus.publish_bytes(
                row["subject"], row["payload"], type_=row["type"], id_=str(row["id"]), traceparent=trace.traceparent(), seconds=_PUBLISH
            )

    async def _hint(self, rows: list[Any]) -> tuple[list[Any], Fault | None]:
        try:
            for row in rows:
                await self._bus.hint_bytes(
                    row["subject"], row["payload"], type_=row["type"], id_=str(row["id"]), traceparent=row["traceparent"], seconds=_PUBLISH
                )
            await self._bus.flush(_PUBLISH)
        except Fault as fault:
            return [], fault
        return [row["id"] for row in rows], None

    async def _sweep(self, connection: Any, schema: _Schema) -> None:
        now = asyncio.get_running_loop().time()
        if now - schema.swept < _SWEEP and schema.swept:
            return
        schema.swept = now
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            await connection.execute(_FORGET.format(schema=schema.name), timeout=_STATEMENT)


_LOCK = "select pg_try_advisory_lock(hashtextextended($1, 0))"
# a loose index scan: one probe per lane, however many rows wait
_LANES = """
with recursive lanes as (
    (select lane from {schema}.outbox where published is null order by lane limit 1)
    union all
    select (select o.lane from {schema}.outbox o where o.published is null and o.lane > lanes.lane order by o.lane limit 1)
    from lanes where lanes.lane is not null
)
select lane from lanes where lane is not null
"""
_TAKE = """
select id, subject, lane, type, payload, traceparent from {schema}.outbox
where published is null and lane = $1 order by seq limit $2
"""
_MARK = "update {schema}.outbox set published = clock_timestamp() where id = any($1::uuid[])"
_OLDEST = "select extract(epoch from clock_timestamp() - min(created))::float8 from {schema}.outbox where published is null"
_FORGET = (
    f"delete from {{schema}}.outbox where id in (select id from {{schema}}.outbox"
    f" where published < now() - interval '{_KEEP_HOURS} hours' limit {_SWEPT_AT_ONCE})"
)
