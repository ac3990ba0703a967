"""SQL of service accounts: rows of identity.users that a tenant or project owns, and their roles in tenancy.members."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from libs.faults import AlreadyExists
from libs.pg import Tx, UniqueViolation
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from services.gateway.identity.owners import Owner
from services.gateway.identity.rights import Membership
from services.gateway.tenancy import members_store

_COLUMNS = "u.uid, u.username, u.display_name, u.state, u.kind, u.owner_tenant, u.owner_project, u.account, u.version, u.created, u.updated"
_NO_PASSWORD = "!"  # noqa: S105 -- no hash, so that no password is right; sign-in does not look at accounts either

SOURCE = Source(
    select=f"SELECT {_COLUMNS} FROM identity.users u",
    filters={
        "account": "u.account",
        "username": "u.username",
        "display_name": "u.display_name",
        "disabled": Column("u.state = 'DISABLED'", "bool"),
        "create_time": Column("u.created", "time"),
        "update_time": Column("u.updated", "time"),
    },
    orders={
        "account": (Part("u.account", "account"),),
        "display_name": (Part("u.display_name", "display_name"),),
        "create_time": (Part("u.created", "created", "time"),),
        "update_time": (Part("u.updated", "updated", "time"),),
    },
    key=(Part("u.account", "account"),),
    default="account",
)


async def insert(tx: Tx, account: Owner) -> None:
    """Keeps a new account; AlreadyExists when its user name is, or was, taken."""
    made = 0
    try:
        async with tx.savepoint():
            made = await tx.execute(
                _INSERT, account.uid, account.username, account.display_name, _NO_PASSWORD, account.tenant, account.project,
                account.account, account.created, "ACTIVE" if account.active else "DISABLED",
            )  # fmt: skip
    except UniqueViolation:
        made = 0
    if not made:
        raise AlreadyExists(f"the name {account.username} is or was taken; choose another", {"resource_name": account.name})


async def update(tx: Tx, account: Owner, now: datetime) -> None:
    """Writes what can be changed; raises the version."""
    await tx.execute(
        "UPDATE identity.users SET display_name = $2, state = $3, updated = $4, version = version + 1 WHERE uid = $1",
        account.uid, account.display_name, "ACTIVE" if account.active else "DISABLED", now,
    )  # fmt: skip


async def delete(tx: Tx, uid: UUID) -> None:
    """Removes an account with its roles; its keys go with it, its user name is burnt."""
    await tx.execute("DELETE FROM tenancy.members WHERE user_uid = $1", uid)
    await tx.execute("DELETE FROM identity.users WHERE uid = $1", uid)


async def memberships(tx: Tx, uids: Iterable[UUID]) -> dict[UUID, list[Membership]]:
    """Roles of some accounts, in the order of their places."""
    found: dict[UUID, list[Membership]] = {uid: [] for uid in uids}
    for row in await tx.rows(_MEMBERSHIPS, list(found)):
        membership = Membership.of(row["level"], row["role"], row["tenant"], row["project"], row["environment"], suspended=False)
        found[row["user_uid"]].append(membership)
    return found


async def replace_roles(tx: Tx, uid: UUID, tenant: str, given: Iterable[Membership]) -> None:
    """Gives an account these roles and no others; with any of them it is a member of the tenant."""
    await tx.execute("DELETE FROM tenancy.members WHERE user_uid = $1", uid)
    given = list(given)
    for membership in given:
        level = (membership.tenant, membership.project, membership.environment)
        await members_store.put(tx, uid, level, membership.role.value[1].lower())
    if given:
        await members_store.join_tenant(tx, uid, tenant)


_INSERT = """
INSERT INTO identity.users
       (uid, username, display_name, password_hash, kind, owner_tenant, owner_project, account, created, updated, state)
SELECT $1, $2, $3, $4, 'SERVICE_ACCOUNT', $5, $6, $7, $8, $8, $9
 WHERE NOT EXISTS (SELECT FROM identity.burnt_names b WHERE b.username = $2)
"""
_MEMBERSHIPS = """
SELECT user_uid, level, role, tenant, project, environment FROM tenancy.members
 WHERE user_uid = ANY($1::uuid[]) ORDER BY tenant, project, environment
"""
