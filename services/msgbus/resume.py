"""Resume tokens: sealed {user, selectors' hash, vector}; useless to anyone else and for any other question."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from functools import lru_cache

import orjson

from libs.crypt.box import Box, Broken
from services.msgbus.domain import Selection

LONGEST = 4096  # bytes of a token, decisions.md 24
_MOST_PLAIN = 256 * 1024

Vector = dict[str, list[str | int]]


@lru_cache(maxsize=4096)
def selectors_hash(selection: Selection) -> str:
    """A hash of what was asked for, whatever the order."""
    asked = sorted(
        repr((sorted(s.scopes), sorted(s.resources), s.cluster, s.namespace, s.object, sorted(s.labels))) for s in selection.selectors
    )
    return hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16]


def seal(box: Box, user: str, selectors: str, vector: Vector) -> str:
    """A token; empty when the vector is too large to carry."""
    return seal_packed(box, user, selectors, packed(vector))


def packed(vector: Vector) -> bytes:
    """A vector as a token carries it."""
    return zlib.compress(orjson.dumps(vector), 1)


def seal_packed(box: Box, user: str, selectors: str, vector: bytes) -> str:
    """As `seal`, for a vector that is packed already and may serve others too."""
    head = orjson.dumps([user, selectors])
    sealed = box.seal(len(head).to_bytes(2, "big") + head + vector, "resume")
    token = base64.urlsafe_b64encode(sealed).decode()
    return token if len(token) <= LONGEST else ""


def open_token(box: Box, token: str, user: str, selectors: str) -> Vector | None:
    """The vector of a token; None when it is broken, another user's, or for other selectors."""
    try:
        plain = box.open(base64.urlsafe_b64decode(token.encode()), "resume")
        length = int.from_bytes(plain[:2], "big")
        if orjson.loads(plain[2 : 2 + length]) != [user, selectors]:
            return None
        vector: Vector = orjson.loads(zlib.decompressobj().decompress(plain[2 + length :], _MOST_PLAIN))
    except (Broken, binascii.Error, ValueError, zlib.error):
        return None
    return vector
