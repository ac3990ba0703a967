"""Resume tokens: sealed {user, selectors' hash, what could be seen, vector}; useless to anyone else and for any other question."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import orjson

from libs.crypt.box import Box, Broken
from services.msgbus.domain import Place, Selection

LONGEST = 4096  # bytes of a token, decisions.md 24
_MOST_PLAIN = 256 * 1024
_SMALL = 512  # bytes that are not worth being made smaller

Vector = dict[str, list[str | int]]
Marks = dict[str, str]  # environment → where it is, in short; "" for all that lies outside of environments


@dataclass(frozen=True, slots=True)
class Past:
    """What a token tells of its holder.

    Attributes:
        marks: what it could see; where that is too much for a token, a digest of it.
        vector: how far it had come.
    """

    marks: Marks | str
    vector: Vector


@lru_cache(maxsize=4096)
def selectors_hash(selection: Selection) -> str:
    """A hash of what was asked for, whatever the order."""
    asked = sorted(
        repr((sorted(s.scopes), sorted(s.resources), s.cluster, s.namespace, s.object, sorted(s.labels))) for s in selection.selectors
    )
    return hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16]


def marks(seen: Mapping[str, Place]) -> Marks:
    """What can be seen, as a token carries it."""
    return {name: _mark(place) for name, place in seen.items()}


@lru_cache(maxsize=16_384)
def _mark(place: Place) -> str:
    return hashlib.sha256("/".join(place).encode()).hexdigest()[:8]


def digest(of: Marks) -> str:
    """The same for the same marks."""
    return hashlib.sha256(orjson.dumps(of, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def packed(vector: Vector) -> bytes:
    """A vector as a token carries it; it may serve several."""
    return zlib.compress(orjson.dumps(vector), 1)


def heads(user: str, selectors: str, seen: Marks) -> tuple[bytes, ...]:
    """What a token says beside its vector, in full and in short, as far as it fits into one; it may serve several."""
    found = (orjson.dumps([user, selectors, what]) for what in (seen, digest(seen)))
    small = (head if len(head) < _SMALL else zlib.compress(head) for head in found)
    return tuple(head for head in small if len(head) < LONGEST)


def seal(box: Box, heads: Iterable[bytes], vector: bytes) -> str:
    """A token of the first head that fits beside a packed vector; empty when none does."""
    return next(filter(None, (_sealed(box, head, vector) for head in heads)), "")


def _sealed(box: Box, head: bytes, vector: bytes) -> str:
    if len(head) + len(vector) > LONGEST:
        return ""
    sealed = box.seal(len(head).to_bytes(2, "big") + head + vector, "resume")
    token = base64.urlsafe_b64encode(sealed).decode()
    return token if len(token) <= LONGEST else ""


def open_token(box: Box, token: str, user: str, selectors: str) -> Past | None:
    """What a token tells; None when it is broken, another user's, or for other selectors."""
    if len(token) > LONGEST:
        return None
    try:
        plain = box.open(base64.urlsafe_b64decode(token.encode()), "resume")
        length = 2 + int.from_bytes(plain[:2], "big")
        head = plain[2:length]
        whose, asked, seen = orjson.loads(head if head.startswith(b"[") else _unpacked(head))
        if (whose, asked) != (user, selectors):
            return None
        return Past(seen, orjson.loads(_unpacked(plain[length:])))
    except (Broken, binascii.Error, ValueError, zlib.error):
        return None


def _unpacked(content: bytes) -> bytes:
    return zlib.decompressobj().decompress(content, _MOST_PLAIN)
