"""What an API key is: its text, its limits, its life. Without wire or SQL."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

from libs.faults import Invalid, PermissionDenied, Precondition

LIFETIME = timedelta(days=90)  # when the maker names no end
LONGEST = timedelta(days=365)
MOST_KEYS = 50  # live ones of one owner
PREFIX = "kgk_"  # by which secret scanners, and we, know a key
SESSION = "apiKeys:"
_TEXT = re.compile(rf"{PREFIX}(?P<id>[0-9a-f]{{32}})\.(?P<secret>[A-Za-z0-9_-]{{43}})", re.ASCII)
_NOBODY = hashlib.sha256(b"nobody").digest()  # what the secret of an unknown key is compared with

# What a key never gives, whatever its owner holds: making credentials that would outlive it, or being somebody else.
NEVER = frozenset(
    {
        "identity.apiKeys.create",
        "identity.users.changePassword",
        "identity.users.resetPassword",
        "identity.users.setRole",
        "fleet.clusters.impersonate",
    }
)
_READS = frozenset({"get", "list", "view", "subscribe", "logs", "connect", "kubeconfig"})
_SECRETS = "workloads.secrets.get"


class Escalation(PermissionDenied):
    """Somebody would hand out more than is held."""

    reason = "ESCALATION"


class TooManyKeys(Precondition):
    """The owner has as many keys as one may have."""

    reason = "TOO_MANY_API_KEYS"


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key as it is shown once: `kgk_{id}.{secret}`, with 256 random bits of secret."""

    id: UUID
    secret: str

    @classmethod
    def new(cls, id_: UUID) -> Self:
        """A fresh one."""
        return cls(id_, secrets.token_urlsafe(32))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """From a credential; None when it cannot be a key."""
        found = _TEXT.fullmatch(text)
        return cls(UUID(found["id"]), found["secret"]) if found else None

    @property
    def text(self) -> str:
        """What the program sends."""
        return f"{PREFIX}{self.id.hex}.{self.secret}"

    @property
    def hash(self) -> bytes:
        """What is kept; a plain hash is enough for so many random bits."""
        return hashlib.sha256(self.secret.encode()).digest()

    def matches(self, kept: bytes | None) -> bool:
        """Whether the secret is the kept hash's; the same work, and never true, without one."""
        return hmac.compare_digest(self.hash, kept or _NOBODY) and kept is not None


@dataclass(frozen=True, slots=True)
class Limits:
    """What narrows a key, beside its owner.

    Attributes:
        key: last part of the key's name.
        permissions: those that it gives; empty for all of the owner's.
        read_only: whether it only reads.
        scope: resource name of the only place where it is good; empty for everywhere.
    """

    key: str
    permissions: frozenset[str] = frozenset()
    read_only: bool = False
    scope: str = ""

    def gives(self, permission: str) -> bool:
        """Whether the key can give a permission at all."""
        if permission in NEVER or (self.permissions and permission not in self.permissions):
            return False
        return not self.read_only or reads(permission)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept, without its hash."""

    id: UUID
    user_uid: UUID
    limits: Limits
    display_name: str
    created: datetime
    expires: datetime
    last_use: datetime | None = None
    last_use_address: str = ""


def reads(permission: str) -> bool:
    """Whether a permission only lets read, and no secret."""
    return permission.rpartition(".")[2] in _READS and permission != _SECRETS


def session_text(key: str, id_: UUID) -> str:
    """What stands for a key where others have a session's id: `apiKeys:{key}:{uid}`."""
    return f"{SESSION}{key}:{id_}"


def session_uid(session: str) -> UUID:
    """The uid in a caller's session, a signed-in user's or a key's; ValueError when it is neither."""
    return UUID(session.rpartition(":")[2])


def expiry(asked: datetime | None, now: datetime) -> datetime:
    """When a key ends; Invalid for a time that is past or too far away."""
    if asked is None:
        return now + LIFETIME
    if not now < asked <= now + LONGEST:
        raise Invalid.one("api_key.expire_time", f"must lie ahead, and at most {LONGEST.days} days")
    return asked
