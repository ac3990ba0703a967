"""Tokens: what a signed-in user sends with each call.

An access token lives 10 minutes and is for the API; a kubeconfig token lives as long as was asked, for one cluster's
`/k8s` alone. Both name a session and end with it. A refresh token is a random word, kept as its hash, good once.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from libs.clock import Clock
from libs.crypt import signing
from services.gateway.identity.domain import ACCESS_LIFETIME, KUBECONFIG_LIFETIME, KUBECONFIG_LONGEST
from services.gateway.identity.keys import Keyring

ACCESS_AUDIENCE = "kubegems"
KUBERNETES_AUDIENCE = "kubegems-kubernetes"
_REMEMBERED = 10_000
_LONGEST = 4096  # characters; ours have some 500


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says. `cluster_uid` is empty in an access token."""

    username: str
    uid: UUID
    session: UUID
    audience: str
    expires: datetime
    cluster_uid: str = ""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token and when it ends."""

    token: str
    expires: datetime


class Tokens:
    """Issues and verifies signed tokens."""

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._keyring = keyring
        self._clock = clock
        self._good: OrderedDict[bytes, tuple[str, Claims]] = OrderedDict()

    def access(self, username: str, uid: UUID, session: UUID, session_expires: datetime) -> Issued:
        """An access token, which never outlives its session."""
        return self._issue(ACCESS_AUDIENCE, username, uid, session, min(ACCESS_LIFETIME, session_expires - self._clock.now()))

    def kubernetes(self, username: str, uid: UUID, session: UUID, cluster_uid: str, lifetime: timedelta | None = None) -> Issued:
        """A token for one cluster's `/k8s`; 1 h unless asked otherwise, at most 12 h, and its session's end in any case."""
        lifetime = min(lifetime or KUBECONFIG_LIFETIME, KUBECONFIG_LONGEST)
        return self._issue(KUBERNETES_AUDIENCE, username, uid, session, lifetime, cluster_uid=cluster_uid)

    async def verify(self, token: str, audience: str) -> Claims:
        """What a token for this audience says; raises signing.Rejected. Whether its session lives is not its business."""
        digest = hashlib.sha256(token.encode()).digest()
        kid, claims = self._good.get(digest, ("", None))
        if claims is None or kid not in self._keyring.public:  # a key that was taken away is good for nothing, at once
            claims = await self._verify(token, audience)
            self._remember(digest, signing.key_id(token), claims)
        if claims.audience != audience or claims.expires <= self._clock.now() - signing.LEEWAY:
            raise signing.Rejected("token is not valid")
        return claims

    async def _verify(self, token: str, audience: str) -> Claims:
        if len(token) > _LONGEST or not await self._keyring.knows(signing.key_id(token)):
            raise signing.Rejected("token is not valid")
        return _claims(signing.verify(token, self._keyring.public, audience), audience)

    def _remember(self, digest: bytes, kid: str, claims: Claims) -> None:
        self._good[digest] = kid, claims
        while len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)

    def _issue(self, audience: str, username: str, uid: UUID, session: UUID, lifetime: timedelta, **more: str) -> Issued:
        now = self._clock.now().replace(microsecond=0)  # a JWT counts whole seconds
        claims = {"sub": username, "uid": str(uid), "sid": str(session), **more}
        return Issued(self._keyring.signing.token(audience, claims, now=now, lifetime=lifetime), now + lifetime)


def _claims(body: dict[str, object], audience: str) -> Claims:
    try:
        return Claims(
            username=str(body["sub"]),
            uid=UUID(str(body["uid"])),
            session=UUID(str(body["sid"])),
            audience=audience,
            expires=datetime.fromtimestamp(int(str(body["exp"])), tz=UTC),
            cluster_uid=str(body.get("cluster_uid", "")),
        )
    except (KeyError, ValueError) as error:
        raise signing.Rejected("token is not valid") from error


def new_refresh_token() -> tuple[str, bytes]:
    """A refresh token and the hash to keep."""
    token = secrets.token_urlsafe(32)
    return token, refresh_hash(token)


def refresh_hash(token: str) -> bytes:
    """What is kept of a refresh token. It has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).digest()
