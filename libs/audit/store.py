"""All SQL of schema `audit`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from libs.audit.entry import Entry, Outcome, above
from libs.audit.redact import clean, cleaned
from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source, Where
from libs.pg.ordering import Part
from libs.rpc.call import Scopes

_COLUMNS = (
    "id, time, actor, actor_uid, session, method, class, resources, tenant, scope, scopes, outcome, code, reason,"
    " address, user_agent, trace_id, request_id, took_millis, request, process"
)
_INSERT = (
    f"insert into audit.events ({_COLUMNS})"
    " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)"
    " on conflict (id) do nothing"  # a batch whose commit was in doubt is written again
)

SOURCE = Source(
    select=f"select {_COLUMNS} from audit.events e",
    filters={
        "actor": "e.actor",
        "method": "e.method",
        "tenant": "e.tenant",
        "outcome": Column("e.outcome", values=tuple(Outcome)),
        "class": Column("e.class", values=("READ", "WRITE", "SENSITIVE")),
        "code": "e.code",
        "reason": "e.reason",
        "trace_id": "e.trace_id",
        "request_id": "e.request_id",
        "resource": Column("e.resources", "texts"),
        "address": "e.address",
        "session": "e.session",
        "time": Column("e.time", "time"),
    },
    orders={"time": (Part("e.time", "time", "time"),)},
    key=(Part("e.id", "id", "uuid"),),
    default="time desc",
)


async def insert(tx: Tx, process: uuid.UUID, entry: Entry) -> None:
    """Stores a record."""
    await tx.execute(_INSERT, *_values(process, entry))


async def insert_many(tx: Tx, process: uuid.UUID, entries: Sequence[Entry]) -> None:
    """Stores records."""
    await tx.many(_INSERT, [_values(process, entry) for entry in entries])


def _values(process: uuid.UUID, entry: Entry) -> tuple[Any, ...]:
    scope = entry.scope
    resources = [clean(name) for name in entry.resources][:100]
    return (
        entry.id, entry.time, clean(entry.actor), clean(entry.actor_uid), clean(entry.session), clean(entry.method), entry.class_,
        resources, clean(entry.tenant), clean(scope), [clean(s) for s in above(scope)], entry.outcome.value, entry.code, entry.reason,
        clean(entry.address), clean(entry.user_agent)[:256], entry.trace_id, clean(entry.request_id), round(entry.took * 1000),
        cleaned(entry.request), process,
    )  # fmt: skip


async def end(tx: Tx, id_: uuid.UUID, entry: Entry) -> bool:
    """Gives an intent its outcome; whether there was one that had none. UNKNOWN yields to the truth, however late."""
    scope = entry.scope
    return bool(
        await tx.execute(
            "update audit.events set outcome = $2, code = $3, reason = $4, took_millis = $5, resources = $6, tenant = $7,"
            " scope = $8, scopes = $9 where id = $1 and outcome in ('PENDING', 'UNKNOWN') and sealed_seq is null",
            id_, entry.outcome.value, entry.code, entry.reason, round(entry.took * 1000), [clean(r) for r in entry.resources][:100],
            clean(entry.tenant), clean(scope), [clean(s) for s in above(scope)],
        )
    )  # fmt: skip


async def alive(tx: Tx, process: uuid.UUID, name: str) -> None:
    """Tells that a process is there."""
    await tx.execute(
        "insert into audit.processes (epoch, name) values ($1, $2) on conflict (epoch) do update set seen = clock_timestamp()",
        process,
        name,
    )


async def ended(tx: Tx, process: uuid.UUID) -> None:
    """Tells that a process ends now."""
    await tx.execute("delete from audit.processes where epoch = $1", process)


async def mark_orphans(tx: Tx, silent_seconds: float) -> int:
    """Makes intents of processes that are gone UNKNOWN; how many."""
    await tx.execute("delete from audit.processes where seen < clock_timestamp() - make_interval(secs => $1)", silent_seconds)
    return await tx.execute(
        "update audit.events e set outcome = 'UNKNOWN' where outcome = 'PENDING'"
        " and not exists (select from audit.processes p where p.epoch = e.process)"
    )


async def forget_requests(tx: Tx) -> int:
    """Drops answers older than a day."""
    return await tx.execute("delete from audit.requests where created < now() - interval '24 hours'")


async def get(tx: Tx, scopes: Scopes, id_: uuid.UUID) -> Record | None:
    """A record, when the reader may read it."""
    where = Where()
    visible(where, scopes)
    where.add("e.id = {}", id_)
    return await tx.row(f"{SOURCE.select} where {where.sql}", *where.args)


def visible(where: Where, scopes: Scopes) -> None:
    """Keeps the records of the scopes where the reader may read audit."""
    if not scopes.everything:
        where.add("e.scopes && {}::text[] or e.scope = any({}::text[])", sorted(scopes.trees), sorted(scopes.exact - {""}))
