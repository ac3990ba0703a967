"""Short-lived signed tokens: Ed25519 JWTs with one algorithm, a required audience and a known key (peers' JWT lessons)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ISSUER = "kubegems"
LEEWAY = timedelta(seconds=5)
_ALGORITHMS = ["EdDSA"]


class Rejected(Exception):
    """The token is malformed, forged, expired, for someone else, or signed by an unknown key."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private Ed25519 key with its id."""

    kid: str
    private: bytes

    @classmethod
    def generate(cls, kid: str) -> SigningKey:
        """A fresh key."""
        raw = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        return cls(kid, raw)

    @property
    def public(self) -> bytes:
        """The raw 32 public bytes."""
        return self._key().public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def token(self, audience: str, claims: Mapping[str, Any], *, now: datetime, lifetime: timedelta) -> str:
        """A signed JWT for one audience."""
        body = {**claims, "iss": ISSUER, "aud": audience, "iat": now, "nbf": now, "exp": now + lifetime}
        return jwt.encode(body, self._key(), algorithm="EdDSA", headers={"kid": self.kid})

    def sign(self, content: bytes) -> bytes:
        """A raw Ed25519 signature."""
        return self._key().sign(content)

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)


def verify(token: str, keys: Mapping[str, bytes], audience: str) -> dict[str, Any]:
    """The claims of a token signed by one of `keys` (kid → raw public key); raises Rejected and says no more than that."""
    try:
        header = jwt.get_unverified_header(token)
        if "crit" in header:
            raise Rejected("token is not valid")
        public = Ed25519PublicKey.from_public_bytes(keys[header["kid"]])
        return jwt.decode(
            token, public, algorithms=_ALGORITHMS, audience=audience, issuer=ISSUER, leeway=LEEWAY,
            options={"require": ["exp", "iat", "nbf", "aud", "iss"]},
        )  # fmt: skip
    except (jwt.PyJWTError, KeyError, ValueError, TypeError) as error:
        raise Rejected("token is not valid") from error


def key_id(token: str) -> str:
    """The key id that a token claims; empty when it has none. For looking the key up only."""
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.PyJWTError:
        return ""


def signed_by(public: bytes, content: bytes, signature: bytes) -> bool:
    """Whether a raw Ed25519 signature is good."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def jwk(kid: str, public: bytes) -> dict[str, str]:
    """A public key as a JSON Web Key (RFC 8037)."""
    x = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x, "use": "sig", "alg": "EdDSA"}
