"""Resume tokens: sealed {user, selectors' hash, vector}; useless to anyone else and for any other question."""

from __future__ import annotations

import base64
import binascii
import hashlib

import orjson

from kubegems.messages.v1 import message_service_pb2
from libs.crypt.box import Box, Broken

LONGEST = 4096  # bytes of a token, decisions.md 24

Vector = dict[str, list[str | int]]


def selectors_hash(request: message_service_pb2.SubscribeRequest) -> str:
    """A hash of what was asked for."""
    asked = message_service_pb2.SubscribeRequest()
    asked.CopyFrom(request)
    asked.ClearField("resume_token")
    asked.ClearField("snapshot")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[:16]


def seal(box: Box, user: str, selectors: str, vector: Vector) -> str:
    """A token; empty when the vector is too large to carry."""
    sealed = box.seal(orjson.dumps({"u": user, "s": selectors, "v": vector}), "resume")
    token = base64.urlsafe_b64encode(sealed).decode()
    return token if len(token) <= LONGEST else ""


def open_token(box: Box, token: str, user: str, selectors: str) -> Vector | None:
    """The vector of a token; None when it is broken, another user's, or for other selectors."""
    try:
        content = orjson.loads(box.open(base64.urlsafe_b64decode(token.encode()), "resume"))
    except (Broken, binascii.Error, ValueError):
        return None
    if content["u"] != user or content["s"] != selectors:
        return None
    vector: Vector = content["v"]
    return vector
