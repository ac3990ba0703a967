"""gzip where it pays: answers of some size that hold no secret. No brotli: at gateway speed it gains little and is one more C library."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from libs.rpc.sizes import COMPRESSED_FROM

_TEXTUAL = ("application/json", "text/", "application/yaml", "application/xml")
_IN_THREAD = 128 * 1024  # from here on another thread does it: the loop would be held up for over a millisecond
_LEVEL, _GZIP = 1, 31


def taken(accept_encoding: str) -> bool:
    """Whether a client takes gzip."""
    for part in accept_encoding.lower().split(","):
        name, _, parameters = part.partition(";")
        if name.strip() in ("gzip", "x-gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def squeeze(answer: Any, accept_encoding: str) -> None:
    """Compresses the body of an answer whose method may be; smaller ones and binary ones stay as they are."""
    if not answer.content_type.startswith(_TEXTUAL):
        return
    answer.headers["Vary"] = f"{answer.headers['Vary']}, Accept-Encoding" if "Vary" in answer.headers else "Accept-Encoding"
    if len(answer.body) < COMPRESSED_FROM or not taken(accept_encoding):
        return
    large = len(answer.body) >= _IN_THREAD
    answer.body = await asyncio.to_thread(_gzipped, answer.body) if large else _gzipped(answer.body)
    answer.headers["Content-Encoding"] = "gzip"
    if etag := answer.headers.get("ETag"):
        answer.headers["ETag"] = f"W/{etag}"  # the same version in other bytes


def _gzipped(data: bytes) -> bytes:
    squeezer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return squeezer.compress(data) + squeezer.flush()
