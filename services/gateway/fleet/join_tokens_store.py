"""SQL of join tokens."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from services.gateway.fleet import certificates_store
from services.gateway.fleet.domain import FORGOTTEN, Token

SOURCE = Source(
    select="SELECT j.id, j.cluster_uid, j.created, j.expires, j.used, j.revoked FROM fleet.join_tokens j",
    filters={
        "create_time": Column("j.created", "time"),
        "expire_time": Column("j.expires", "time"),
        "use_time": Column("j.used", "time", nullable=True),
    },
    orders={
        "create_time": (Part("j.created", "created", "time"),),
        "expire_time": (Part("j.expires", "expires", "time"),),
        "use_time": (Part("j.used", "used", "time", nullable=True),),
    },
    key=(Part("j.id", "id"),),
    default="create_time desc",
)


async def insert(tx: Tx, token: Token, cluster_uid: UUID, created: datetime, expires: datetime) -> Record:
    """Keeps a token's hash, and forgets its cluster's that ended long ago; its row."""
    await tx.execute("DELETE FROM fleet.join_tokens WHERE cluster_uid = $1 AND expires < $2", cluster_uid, created - FORGOTTEN)
    await tx.execute(
        "INSERT INTO fleet.join_tokens (id, cluster_uid, secret_hash, created, expires) VALUES ($1, $2, $3, $4, $5)",
        token.id, cluster_uid, token.secret_hash, created, expires,
    )  # fmt: skip
    row = await tx.row(f"{SOURCE.select} WHERE j.id = $1", token.id)
    assert row is not None, "it was just inserted"
    return row


async def lock(tx: Tx, id_: str) -> Record | None:
    """A token with its hashes and its cluster's name, held until the transaction ends, as are the cluster's certificates and tokens."""
    await certificates_store.lock(tx, str(await tx.value("SELECT cluster_uid FROM fleet.join_tokens WHERE id = $1", id_)))
    return await tx.row(
        "SELECT j.id, j.cluster_uid, j.secret_hash, j.created, j.expires, j.used, j.revoked, j.public_key_hash, c.name AS cluster"
        " FROM fleet.join_tokens j JOIN fleet.clusters c ON c.uid = j.cluster_uid WHERE j.id = $1 FOR UPDATE OF j",
        id_,
    )


async def use(tx: Tx, id_: str, public_key_hash: bytes, now: datetime) -> None:
    """Binds a token to the key that uses it first, and takes back those that its cluster joined with before."""
    await tx.execute("UPDATE fleet.join_tokens SET used = $3, public_key_hash = $2 WHERE id = $1", id_, public_key_hash, now)
    await tx.execute(
        "UPDATE fleet.join_tokens SET revoked = $2 WHERE id <> $1 AND used IS NOT NULL AND revoked IS NULL"
        " AND cluster_uid = (SELECT cluster_uid FROM fleet.join_tokens WHERE id = $1)",
        id_, now,
    )  # fmt: skip


async def revoke(tx: Tx, cluster: str, id_: str, now: datetime) -> bool:
    """Takes a token back; whether it is there."""
    return bool(
        await tx.execute(
            "UPDATE fleet.join_tokens j SET revoked = coalesce(revoked, $3) FROM fleet.clusters c"
            " WHERE j.id = $2 AND c.uid = j.cluster_uid AND c.name = $1",
            cluster, id_, now,
        )
    )  # fmt: skip
