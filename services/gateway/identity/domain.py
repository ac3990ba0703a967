"""Users, sessions and sign-in: plain facts and rules, without wire or SQL."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from libs.faults import Exhausted, Invalid, Precondition, Unauthenticated

ACCESS_LIFETIME = timedelta(minutes=10)
SESSION_IDLE = timedelta(hours=24)  # a session not refreshed for so long ends
SESSION_LIFETIME = timedelta(days=30)  # and in any case after this
KUBECONFIG_LIFETIME = timedelta(hours=1)  # when the caller names none
KUBECONFIG_LONGEST = timedelta(hours=12)
SHORTEST_PASSWORD = 10

FREE_FAILURES = 5  # people mistype; only what goes on after that waits
LONGEST_DELAY = timedelta(minutes=5)  # growing, never a lock: a stranger cannot shut an account for good
FAILURES_KEPT = timedelta(hours=24)

_RESERVED = frozenset({"me", "-"})
_ACCOUNTS = "sa."  # what service accounts' user names start with


class PlatformRole(enum.StrEnum):
    """A role that holds everywhere."""

    USER = "USER"
    AUDITOR = "AUDITOR"
    ADMIN = "ADMIN"


class UserState(enum.StrEnum):
    """Whether a user may sign in."""

    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"


@dataclass(frozen=True, slots=True)
class User:
    """A person or program that signs in; `version` is its etag."""

    uid: UUID
    username: str
    display_name: str
    email: str
    state: UserState
    platform_role: PlatformRole
    version: int
    created: datetime
    updated: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in of a user; `expires` moves with each refresh, up to SESSION_LIFETIME after `created`."""

    id: UUID
    user_uid: UUID
    username: str
    created: datetime
    expires: datetime
    refreshed: datetime
    address: str
    user_agent: str


class WrongCredentials(Unauthenticated):
    """User name or password is wrong; which of them is never said."""

    reason = "WRONG_CREDENTIALS"

    def __init__(self) -> None:
        super().__init__("user name or password is wrong")


class SignInDelayed(Exhausted):
    """Too many failures from this network for this account; waiting helps."""

    reason = "SIGN_IN_DELAYED"


class LastAdmin(Precondition):
    """The change would leave the platform without an admin."""

    reason = "LAST_PLATFORM_ADMIN"


def delay_after(failures: int) -> timedelta:
    """How long after its last failure an account waits: nothing at first, then doubling from 1 s to LONGEST_DELAY."""
    if failures <= FREE_FAILURES:
        return timedelta(0)
    doublings = min(failures - FREE_FAILURES - 1, 16)
    return min(timedelta(seconds=2**doublings), LONGEST_DELAY)


def source_network(address: str) -> str:
    """The network that an address belongs to, as failures are counted by: /24 of IPv4, /64 of IPv6; `unknown` otherwise."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 64), strict=False))  # noqa: PLR2004 -- the protocol's name


def session_expiry(created: datetime, now: datetime) -> datetime:
    """When a session ends that is refreshed now."""
    return min(now + SESSION_IDLE, created + SESSION_LIFETIME)


def check_username(username: str) -> None:
    """Refuses names that mean something else in a resource name."""
    if username in _RESERVED:
        raise Invalid.one("user_id", f"`{username}` is reserved; choose another name")
    if username.startswith(_ACCOUNTS):
        raise Invalid.one("user_id", f"names that start with `{_ACCOUNTS}` are those of service accounts; choose another name")


def check_password(field: str, username: str, password: str) -> None:
    """Refuses passwords that are too short, or that anyone would try first; the fault does not hold the password."""
    if len(password) < SHORTEST_PASSWORD:
        raise Invalid.one(field, f"must have at least {SHORTEST_PASSWORD} characters")
    if password.casefold() == username.casefold():
        raise Invalid.one(field, "must not be the user name")


def text(field: str, value: str) -> str:
    """A text for people, without control characters; Invalid otherwise."""
    if not value.isprintable():
        raise Invalid.one(field, "must not hold control characters")
    return value


def check_not_last_admin(user: User, active_admins: frozenset[UUID]) -> None:
    """Refuses to take the admin role, or sign-in, from the only active platform admin."""
    if user.uid in active_admins and len(active_admins) == 1:
        raise LastAdmin(
            f"users/{user.username} is the last platform admin; make another one first", metadata={"user": f"users/{user.username}"}
        )
