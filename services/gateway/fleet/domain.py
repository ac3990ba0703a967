"""Rules of joining: what a token and a certificate are worth."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.faults import PermissionDenied
from services.gateway.tenancy.domain.rows import Row

DEFAULT_TTL = timedelta(hours=1)
RENEWABLE = timedelta(days=90)  # how long after its end a certificate still renews
FORGOTTEN = timedelta(days=120)  # after which certificates and join tokens that ended are not kept any more


class JoinRefused(PermissionDenied):
    """The token is not good for this key now, or is none of ours; which of the last two is not told."""

    reason = "JOIN_REFUSED"


class RenewalRefused(PermissionDenied):
    """The certificate, or the proof of holding its key, is not good."""

    reason = "RENEWAL_REFUSED"


@dataclass(frozen=True, slots=True)
class Token:
    """A join token with its secret, as it is shown once."""

    id: str
    secret: str

    @classmethod
    def new(cls) -> Token:
        """A fresh one: 80 bits of id, 256 bits of secret."""
        return cls(secrets.token_hex(10), secrets.token_urlsafe(32))

    @classmethod
    def parse(cls, text: str) -> Token:
        """From `{id}.{secret}`; a text without a dot is a token that nobody has."""
        id_, _, secret = text.strip().partition(".")
        return cls(id_, secret)

    @property
    def text(self) -> str:
        """`{id}.{secret}`."""
        return f"{self.id}.{self.secret}"

    @property
    def secret_hash(self) -> bytes:
        """What is kept of the secret; with 256 random bits a plain hash is enough."""
        return hashlib.sha256(self.secret.encode()).digest()


def state(token: Row, now: datetime) -> str:
    """REVOKED, EXPIRED, USED or UNUSED."""
    if token["revoked"]:
        return "REVOKED"
    if token["expires"] <= now:
        return "EXPIRED"
    return "USED" if token["used"] else "UNUSED"


def refuse_token(given: Token, kept: Row | None, key_hash: bytes, now: datetime) -> None:
    """Raises JoinRefused unless a token is good for a key.

    The reason is told only to those who hold the secret, and an unknown id takes the same work as a wrong secret.
    """
    right = hmac.compare_digest(given.secret_hash, kept["secret_hash"] if kept else bytes(32))
    if kept is None or not right:
        raise JoinRefused("the join token is not valid")
    match state(kept, now):
        case "REVOKED":
            raise JoinRefused("the join token was revoked; make a new one")
        case "EXPIRED":
            raise JoinRefused("the join token has expired; make a new one")
        case "USED" if kept["public_key_hash"] != key_hash:
            raise JoinRefused("the join token was used with another key; make a new one")


def refuse_certificate(kept: Row | None, spiffe_id: str, now: datetime) -> None:
    """Raises RenewalRefused unless a certificate, known by its serial number, may still be renewed."""
    if kept is None or spiffe_id != agent_id(kept["cluster_uid"]) or not kept["cluster"]:
        raise RenewalRefused("the certificate is not that of a cluster of this hub")
    if kept["revoked"]:
        raise RenewalRefused("the certificate was revoked; join again with a new token")
    if kept["expires"] + RENEWABLE < now:
        raise RenewalRefused(f"the certificate expired more than {RENEWABLE.days} days ago; join again with a new token")


def agent_id(cluster_uid: object) -> str:
    """SPIFFE id in an agent's certificate."""
    return f"spiffe://kubegems/cluster/{cluster_uid}"
