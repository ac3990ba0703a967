"""SQL of API keys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import UUID

from libs.faults import AlreadyExists
from libs.pg import Record, Tx, UniqueViolation
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from services.gateway.identity.api_key_domain import ApiKey, Limits

KEPT = timedelta(days=30)  # after its end, for those who ask why a pipeline stopped
_COLUMNS = (
    "k.id, k.user_uid, k.key, k.display_name, k.permissions, k.read_only, k.scope, k.created, k.expires, k.last_use, k.last_use_address"
)

SOURCE = Source(
    select=f"SELECT {_COLUMNS} FROM identity.api_keys k",
    filters={
        "key": "k.key",
        "display_name": "k.display_name",
        "read_only": Column("k.read_only", "bool"),
        "scope": "k.scope",
        "permissions": Column("k.permissions", "texts"),
        "create_time": Column("k.created", "time"),
        "expire_time": Column("k.expires", "time"),
        "last_use_time": Column("k.last_use", "time", nullable=True),
        "last_use_address": "k.last_use_address",
    },
    orders={
        "create_time": (Part("k.created", "created", "time"),),
        "key": (Part("k.key", "key"),),
        "display_name": (Part("k.display_name", "display_name"),),
        "expire_time": (Part("k.expires", "expires", "time"),),
        "last_use_time": (Part("k.last_use", "last_use", "time", nullable=True),),
    },
    key=(Part("k.id", "id", "uuid"),),
    default="create_time desc",
)


async def hash_of(tx: Tx, id_: UUID) -> bytes | None:
    """What is kept of a key's secret; None when there is no such key."""
    found: bytes | None = await tx.value("SELECT hash FROM identity.api_keys WHERE id = $1 AND revoked IS NULL", id_)
    return found


async def insert(tx: Tx, key: ApiKey, hash_: bytes, name: str) -> None:
    """Keeps a new key; AlreadyExists when its owner has one of that name."""
    limits = key.limits
    try:
        async with tx.savepoint():
            await tx.execute(
                _INSERT, key.id, key.user_uid, limits.key, hash_, key.display_name, sorted(limits.permissions), limits.read_only,
                limits.scope, key.created, key.expires,
            )  # fmt: skip
    except UniqueViolation as error:
        raise AlreadyExists(f"{name} is there already", {"resource_name": name}) from error


async def get(tx: Tx, owner: UUID, key: str) -> ApiKey | None:
    """A key of an owner."""
    row = await tx.row(f"SELECT {_COLUMNS} FROM identity.api_keys k WHERE k.user_uid = $1 AND k.key = $2 AND k.revoked IS NULL", owner, key)
    return from_row(row) if row else None


async def count(tx: Tx, owner: UUID, now: datetime) -> int:
    """How many keys of an owner can be used; the owner's row is locked, so that two makers count one after the other."""
    await tx.execute("SELECT FROM identity.users WHERE uid = $1 FOR NO KEY UPDATE", owner)
    sql = "SELECT count(*) FROM identity.api_keys WHERE user_uid = $1 AND revoked IS NULL AND expires > $2"
    return int(await tx.value(sql, owner, now))


async def revoke(tx: Tx, owner: UUID, key: str, now: datetime) -> bool:
    """Takes a key back; False when there is none."""
    sql = "UPDATE identity.api_keys SET revoked = $3 WHERE user_uid = $1 AND key = $2 AND revoked IS NULL"
    return await tx.execute(sql, owner, key, now) > 0


async def keep_uses(tx: Tx, uses: Mapping[UUID, tuple[datetime, str]]) -> None:
    """Writes when and from where keys were used last."""
    ids = sorted(uses)  # one order for all replicas, or they wait for each other
    await tx.execute(_USES, ids, [uses[id_][0] for id_ in ids], [uses[id_][1] for id_ in ids])


async def purge(tx: Tx, now: datetime) -> None:
    """Removes keys a month after their end."""
    await tx.execute("DELETE FROM identity.api_keys WHERE expires < $1 OR revoked < $1", now - KEPT)


def from_row(row: Record) -> ApiKey:
    """From a row of SOURCE."""
    return ApiKey(
        id=row["id"],
        user_uid=row["user_uid"],
        limits=Limits(row["key"], frozenset(row["permissions"]), row["read_only"], row["scope"]),
        display_name=row["display_name"],
        created=row["created"],
        expires=row["expires"],
        last_use=row["last_use"],
        last_use_address=row["last_use_address"],
    )


_INSERT = """
INSERT INTO identity.api_keys (id, user_uid, key, hash, display_name, permissions, read_only, scope, created, expires)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""
_USES = """
UPDATE identity.api_keys k SET last_use = u.time, last_use_address = u.address
  FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS u (id, time, address)
 WHERE k.id = u.id AND (k.last_use IS NULL OR k.last_use < u.time)
"""
