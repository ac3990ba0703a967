"""SQL of members. Project and environment are `''` above their level."""

from __future__ import annotations

from uuid import UUID

from libs.pg import Record, Tx
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part

SOURCE = Source(
    select="SELECT u.username, u.display_name, m.tenant, m.project, m.environment, m.role, m.created FROM tenancy.members m"
    " JOIN identity.users u ON u.uid = m.user_uid",
    tally="SELECT count(*) FROM tenancy.members m JOIN identity.users u ON u.uid = m.user_uid",
    filters={
        "user": "'users/' || u.username",
        "display_name": "u.display_name",
        "role": Column("upper(m.role)", values=("ADMIN", "OPS", "DEV", "TEST", "MEMBER", "OPERATOR", "READER")),
        "create_time": Column("m.created", "time"),
    },
    orders={
        "user": (Part("u.username", "username"),),
        "display_name": (Part("u.display_name", "display_name"),),
        "role": (Part("m.role", "role"),),
        "create_time": (Part("m.created", "created", "time"),),
    },
    key=(Part("u.username", "username"),),
    default="user",
)
_AT = "m.tenant = $1 AND m.project = $2 AND m.environment = $3"

Level = tuple[str, str, str]  # tenant, project, environment


def at(parts: list[str]) -> Level:
    """The level that the ids of a scope reach."""
    tenant, project, environment = (*parts, "", "")[:3]
    return tenant, project, environment


async def get(tx: Tx, level: Level, username: str) -> Record | None:
    """A user's role at a level."""
    return await tx.row(f"{SOURCE.select} WHERE {_AT} AND u.username = $4", *level, username)


async def person_uid(tx: Tx, username: str) -> UUID | None:
    """A person's uid; None when there is no such person. Service accounts get their roles from their owners."""
    uid = await tx.value("SELECT uid FROM identity.users WHERE username = $1 AND kind = 'PERSON'", username)
    return None if uid is None else UUID(str(uid))


async def user_uid(tx: Tx, username: str) -> UUID | None:
    """A user's uid; None when there is no such user."""
    uid = await tx.value("SELECT uid FROM identity.users WHERE username = $1", username)
    return None if uid is None else UUID(str(uid))


async def put(tx: Tx, user: UUID, level: Level, role: str) -> None:
    """Sets a role at a level."""
    name = "environment" if level[2] else "project" if level[1] else "tenant"
    await tx.execute(
        "INSERT INTO tenancy.members (user_uid, level, tenant, project, environment, role) VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (tenant, project, environment, user_uid) DO UPDATE SET role = excluded.role",
        user, name, *level, role,
    )  # fmt: skip


async def join_tenant(tx: Tx, user: UUID, tenant: str) -> None:
    """Makes a user a member of a tenant, if it holds no role there yet."""
    await tx.execute(
        "INSERT INTO tenancy.members (user_uid, level, tenant, role) VALUES ($1, 'tenant', $2, 'member') ON CONFLICT DO NOTHING",
        user, tenant,
    )  # fmt: skip


async def remove(tx: Tx, user: UUID, level: Level) -> None:
    """Takes a user's roles at a level and below it away."""
    tenant, project, environment = level
    await tx.execute(
        "DELETE FROM tenancy.members WHERE user_uid = $1 AND tenant = $2 AND ($3 = '' OR project = $3) AND ($4 = '' OR environment = $4)",
        user, tenant, project, environment,
    )  # fmt: skip


async def other_admins(tx: Tx, tenant: str, user: UUID) -> int:
    """How many admins a tenant has besides a user; service accounts do not count, since nobody signs in as one."""
    return int(
        await tx.value(
            "SELECT count(*) FROM tenancy.members m JOIN identity.users u ON u.uid = m.user_uid AND u.kind = 'PERSON'"
            " WHERE m.tenant = $1 AND m.level = 'tenant' AND m.role = 'admin' AND m.user_uid <> $2",
            tenant,
            user,
        )
    )
