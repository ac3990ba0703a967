"""The first user: `admin`, whose password comes from a file. Making it, and setting its password again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from libs import log
from libs.audit import Auditor, Entry
from libs.clock import Clock, SystemClock, new_id
from libs.pg import Database, Tx
from services.gateway.identity import domain, store
from services.gateway.identity.domain import PlatformRole, User, UserState
from services.gateway.identity.passwords import Passwords

ADMIN = "admin"
_log = log.get("services.gateway.identity.bootstrap")


async def bootstrap_admin(
    database: Database, password_file: Path, *, passwords: Passwords, auditor: Auditor | None = None, clock: Clock | None = None
) -> bool:
    """Makes `admin` unless it, or another platform admin, is there already; whether it did. Replicas may call it at once.

    Args:
        database: with schema `identity` up to date.
        password_file: holds the password, at least 10 characters; ValueError when others can read it.
        passwords: hashes it.
        auditor: records it, if given.
        clock: the time.
    """
    now = (clock or SystemClock()).now()
    async with database.transaction(readonly=True) as tx:
        if await _any_admin(tx):
            return False
    password_hash = await passwords.hash(read_password(password_file))
    async with database.transaction() as tx:
        await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended('identity bootstrap', 0))")
        if await _any_admin(tx):
            return False
        await store.insert_user(tx, _admin(now), password_hash)
        await _record(tx, auditor, "identity/bootstrapAdmin")
    _log.info("admin.made")
    return True


async def reset_admin(
    database: Database, password_file: Path, *, passwords: Passwords, auditor: Auditor | None = None, clock: Clock | None = None
) -> None:
    """Gives `admin` the password of a file, the platform role and leave to sign in; its sessions end. Made when missing."""
    now = (clock or SystemClock()).now()
    password_hash = await passwords.hash(read_password(password_file))
    async with database.transaction() as tx:
        user = await store.find_user(tx, ADMIN)
        if user is None:
            user = await store.insert_user(tx, _admin(now), password_hash)
        await store.update_user(tx, replace(user, state=UserState.ACTIVE, platform_role=PlatformRole.ADMIN), now)
        await store.set_password(tx, user.uid, password_hash, now)
        await store.end_sessions(tx, user.uid, now)
        await tx.execute("DELETE FROM identity.sign_in_failures WHERE username = $1", ADMIN)
        await _record(tx, auditor, "identity/resetAdmin")
    _log.info("admin.reset")


def read_password(path: Path) -> str:
    """The password that a file holds in its only line; ValueError when it is too short or others can read the file."""
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} can be read by others; run: chmod 600 {path}")
    password = path.read_text().strip()
    if len(password) < domain.SHORTEST_PASSWORD:
        raise ValueError(f"{path} must hold a password of at least {domain.SHORTEST_PASSWORD} characters")
    return password


def _admin(now: datetime) -> User:
    return User(new_id(), ADMIN, "Administrator", "", UserState.ACTIVE, PlatformRole.ADMIN, 1, now, now)


async def _any_admin(tx: Tx) -> bool:
    sql = "SELECT EXISTS (SELECT FROM identity.users WHERE platform_role = 'ADMIN' OR username = $1)"
    return bool(await tx.value(sql, ADMIN))


async def _record(tx: Tx, auditor: Auditor | None, method: str) -> None:
    if auditor is not None:
        entry = Entry(method=method, class_="SENSITIVE", actor="services/gateway", resources=[f"users/{ADMIN}"])
        await auditor.record(tx, entry)
