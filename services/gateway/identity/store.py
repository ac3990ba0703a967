"""All SQL about users, sessions and sign-in; functions over a Tx."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from libs.faults import AlreadyExists, NotFound
from libs.pg import Record, Tx, UniqueViolation
from libs.pg.filters import Column
from libs.pg.lists import Source
from libs.pg.ordering import Part
from libs.rpc.authorisation import missing
from services.gateway.identity import domain
from services.gateway.identity.domain import PlatformRole, Session, User, UserState

_USER = "u.uid, u.username, u.display_name, u.email, u.state, u.platform_role, u.version, u.created, u.updated"
_SESSION = "s.id, s.user_uid, u.username, s.created, s.expires, s.refreshed, s.address, s.user_agent"
USERS = Source(
    select=f"SELECT {_USER} FROM identity.users u",
    tally="SELECT count(*) FROM identity.users u",
    filters={
        "name": "'users/' || u.username",
        "display_name": "u.display_name",
        "email": "u.email",
        "state": Column("u.state", values=tuple(UserState)),
        "platform_role": Column("u.platform_role", values=tuple(PlatformRole)),
        "create_time": Column("u.created", "time"),
        "update_time": Column("u.updated", "time"),
    },
    orders={
        "name": (Part("u.username", "username"),),
        "display_name": (Part("u.display_name", "display_name"),),
        "email": (Part("u.email", "email"),),
        "state": (Part("u.state", "state"),),
        "platform_role": (Part("u.platform_role", "platform_role"),),
        "create_time": (Part("u.created", "created", "time"), Part("u.uid", "uid", "uuid")),
        "update_time": (Part("u.updated", "updated", "time"),),
    },
    key=(Part("u.username", "username"),),
    default="name",
)
SESSIONS = Source(
    select=f"SELECT {_SESSION} FROM identity.sessions s JOIN identity.users u ON u.uid = s.user_uid",
    filters={
        "create_time": Column("s.created", "time"),
        "expire_time": Column("s.expires", "time"),
        "refresh_time": Column("s.refreshed", "time"),
        "address": "s.address",
        "user_agent": "s.user_agent",
    },
    orders={
        "create_time": (Part("s.created", "created", "time"),),
        "expire_time": (Part("s.expires", "expires", "time"),),
        "refresh_time": (Part("s.refreshed", "refreshed", "time"),),
        "address": (Part("s.address", "address"),),
    },
    key=(Part("s.id", "id", "uuid"),),
    default="create_time desc",
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with its password hash; stays within sign-in."""

    user: User
    password_hash: str


async def insert_user(tx: Tx, user: User, password_hash: str) -> User:
    """Keeps a new user; AlreadyExists when the name is or was taken."""
    try:
        async with tx.savepoint():
            row = await tx.row(
                _INSERT_USER, user.uid, user.username, user.display_name, user.email, user.platform_role.value, password_hash, user.created
            )
    except UniqueViolation:
        row = None
    if row is None:
        raise AlreadyExists(
            f"the name `{user.username}` is or was taken; names are never given out again", metadata={"name": f"users/{user.username}"}
        )
    return user_of(row)


async def find_user(tx: Tx, username: str) -> User | None:
    """The user of a name, or None."""
    row = await tx.row(f"SELECT {_USER} FROM identity.users u WHERE u.username = $1", username)
    return user_of(row) if row else None


async def get_user(tx: Tx, username: str, *, lock: bool = False) -> User:
    """The user of a name; NotFound. Locked for a change if asked: then a person, since service accounts are their owners' to change."""
    suffix = " AND u.kind = 'PERSON' FOR UPDATE" if lock else ""
    row = await tx.row(f"SELECT {_USER} FROM identity.users u WHERE u.username = $1{suffix}", username)
    if row is None:
        raise no_such_user(username)
    return user_of(row)


def no_such_user(username: str) -> NotFound:
    """The fault for a name that nobody has; the same as for one that the caller may not know of."""
    return missing(f"users/{username}")


async def update_user(tx: Tx, user: User, now: datetime) -> User:
    """Writes what can be changed; raises the version."""
    row = await tx.row(_UPDATE_USER, user.uid, user.display_name, user.email, user.state.value, user.platform_role.value, now)
    assert row is not None, "the caller holds the row's lock"
    return user_of(row)


async def lock_active_admins(tx: Tx) -> frozenset[UUID]:
    """Uids of the platform admins that may sign in, locked, so that two cannot step down past each other."""
    rows = await tx.rows("SELECT uid FROM identity.users WHERE platform_role = 'ADMIN' AND state = 'ACTIVE' ORDER BY uid FOR UPDATE")
    return frozenset(row["uid"] for row in rows)


async def credentials(tx: Tx, username: str, *, lock: bool = False) -> Credentials | None:
    """A person with its password hash, or None."""
    suffix = " FOR NO KEY UPDATE" if lock else ""
    row = await tx.row(
        f"SELECT {_USER}, u.password_hash FROM identity.users u WHERE u.username = $1 AND u.kind = 'PERSON'{suffix}", username
    )
    return Credentials(user_of(row), row["password_hash"]) if row else None


async def set_password(tx: Tx, uid: UUID, password_hash: str, now: datetime) -> None:
    """Replaces a password's hash."""
    await tx.execute(
        "UPDATE identity.users SET password_hash = $2, updated = $3, version = version + 1 WHERE uid = $1", uid, password_hash, now
    )


async def rehash_password(tx: Tx, uid: UUID, password_hash: str) -> None:
    """Replaces a hash by one of the same password; nothing that a user can see changes."""
    await tx.execute("UPDATE identity.users SET password_hash = $2 WHERE uid = $1", uid, password_hash)


async def insert_session(tx: Tx, session: Session, refresh_hash: bytes) -> None:
    """Keeps a new session with its first refresh token."""
    await tx.execute(_INSERT_SESSION, session.id, session.user_uid, session.created, session.expires, session.address, session.user_agent)
    await insert_refresh(tx, session.id, refresh_hash, session.created)


async def insert_refresh(tx: Tx, session: UUID, refresh_hash: bytes, now: datetime) -> None:
    """Keeps the next refresh token of a session."""
    await tx.execute("INSERT INTO identity.refresh_tokens (hash, session_id, created) VALUES ($1, $2, $3)", refresh_hash, session, now)


async def use_refresh(tx: Tx, refresh_hash: bytes, now: datetime) -> UUID | None:
    """Uses a refresh token up: its session, or None when there is no unused one."""
    found: UUID | None = await tx.value(
        "UPDATE identity.refresh_tokens SET used = $2 WHERE hash = $1 AND used IS NULL RETURNING session_id", refresh_hash, now
    )
    return found


async def session_of_used(tx: Tx, refresh_hash: bytes) -> Session | None:
    """The live session of a refresh token that was used before."""
    row = await tx.row(_SESSION_OF_USED, refresh_hash)
    return session_of(row) if row else None


async def renew_session(tx: Tx, session: UUID, now: datetime) -> Session | None:
    """Moves a session's end; None when it has ended, has expired or its user may not sign in."""
    created = await tx.value(_LIVE_CREATED, session, now)
    if created is None:
        return None
    row = await tx.row(_RENEW_SESSION, session, now, domain.session_expiry(created, now))
    return session_of(row) if row else None


async def end_session(tx: Tx, session: UUID, now: datetime, *, username: str | None = None) -> bool:
    """Ends a live session (of a user, if named); False when there is none."""
    return await tx.execute(_END_SESSION, session, now, username) > 0


async def end_sessions(tx: Tx, user: UUID, now: datetime, *, but: UUID | None = None) -> int:
    """Ends all live sessions of a user, but one if named; how many."""
    return await tx.execute(
        "UPDATE identity.sessions SET ended = $2 WHERE user_uid = $1 AND ended IS NULL AND id IS DISTINCT FROM $3", user, now, but
    )


async def attempt(tx: Tx, username: str, network: str, now: datetime) -> timedelta:
    """Counts an attempt to sign in as failed until `forgive` says otherwise; how long to wait instead, zero when it may go on.

    Counting first means that attempts sent all at once are no way around the delay.
    """
    await tx.execute(_OPEN_FAILURES, username, network, now)
    row = await tx.row(
        "SELECT failures, last FROM identity.sign_in_failures WHERE username = $1 AND network = $2 FOR UPDATE", username, network
    )
    assert row is not None, "made above"
    failures = row["failures"] if now - row["last"] < domain.FAILURES_KEPT else 0
    wait: timedelta = row["last"] + domain.delay_after(failures) - now
    if wait > timedelta(0):
        return wait
    await tx.execute(
        "UPDATE identity.sign_in_failures SET failures = $3, last = $4 WHERE username = $1 AND network = $2",
        username, network, failures + 1, now,
    )  # fmt: skip
    return timedelta(0)


async def forgive(tx: Tx, username: str, network: str, *, all_of_them: bool) -> None:
    """Takes back one counted attempt, or all of them after a right password."""
    sql = "DELETE FROM identity.sign_in_failures WHERE username = $1 AND network = $2"
    if not all_of_them:
        sql = "UPDATE identity.sign_in_failures SET failures = greatest(failures - 1, 0) WHERE username = $1 AND network = $2"
    await tx.execute(sql, username, network)


async def purge(tx: Tx, now: datetime) -> None:
    """Removes what nobody asks for any more: old failures, and sessions (with their tokens) a month after their end."""
    await tx.execute("DELETE FROM identity.sign_in_failures WHERE last < $1", now - domain.FAILURES_KEPT)
    await tx.execute("DELETE FROM identity.sessions WHERE expires < $1", now - domain.SESSION_LIFETIME)


def user_of(row: Record) -> User:
    """From a row of USERS."""
    return User(
        uid=row["uid"],
        username=row["username"],
        display_name=row["display_name"],
        email=row["email"],
        state=UserState(row["state"]),
        platform_role=PlatformRole(row["platform_role"]),
        version=row["version"],
        created=row["created"],
        updated=row["updated"],
    )


def session_of(row: Record) -> Session:
    """From a row of SESSIONS."""
    return Session(
        id=row["id"],
        user_uid=row["user_uid"],
        username=row["username"],
        created=row["created"],
        expires=row["expires"],
        refreshed=row["refreshed"],
        address=row["address"],
        user_agent=row["user_agent"],
    )


_INSERT_USER = f"""
INSERT INTO identity.users AS u (uid, username, display_name, email, platform_role, password_hash, created, updated)
SELECT $1, $2, $3, $4, $5, $6, $7, $7
 WHERE NOT EXISTS (SELECT FROM identity.burnt_names b WHERE b.username = $2)
RETURNING {_USER}
"""
_UPDATE_USER = f"""
UPDATE identity.users AS u
   SET display_name = $2, email = $3, state = $4, platform_role = $5, updated = $6, version = u.version + 1
 WHERE u.uid = $1
RETURNING {_USER}
"""
_INSERT_SESSION = """
INSERT INTO identity.sessions (id, user_uid, created, expires, refreshed, address, user_agent) VALUES ($1, $2, $3, $4, $3, $5, $6)
"""
_SESSION_OF_USED = f"""
SELECT {_SESSION} FROM identity.refresh_tokens r
  JOIN identity.sessions s ON s.id = r.session_id JOIN identity.users u ON u.uid = s.user_uid
 WHERE r.hash = $1 AND s.ended IS NULL
"""
_LIVE_CREATED = """
SELECT s.created FROM identity.sessions s JOIN identity.users u ON u.uid = s.user_uid
 WHERE s.id = $1 AND s.ended IS NULL AND s.expires > $2 AND u.state = 'ACTIVE'
   FOR NO KEY UPDATE OF s
"""
_RENEW_SESSION = f"""
UPDATE identity.sessions s SET refreshed = $2, expires = $3 FROM identity.users u
 WHERE s.id = $1 AND u.uid = s.user_uid
RETURNING {_SESSION}
"""
_END_SESSION = """
UPDATE identity.sessions s SET ended = $2 FROM identity.users u
 WHERE s.id = $1 AND u.uid = s.user_uid AND s.ended IS NULL AND s.expires > $2 AND ($3::text IS NULL OR u.username = $3)
"""
_OPEN_FAILURES = """
INSERT INTO identity.sign_in_failures (username, network, failures, last) VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING
"""
