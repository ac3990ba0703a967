"""A document that never changes while the process lives: its bytes, compressed bytes and ETag are made once."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping

from libs.rest import compress, headers
from libs.rest.api import Answer
from libs.rpc.sizes import COMPRESSED_FROM

_LEVEL = 9  # once per process


class Fixed:
    """Answers everyone alike.

    Args:
        content_type: of the body; what is text is also kept compressed.
        body: the document.
        more: further headers of its answers.
    """

    def __init__(self, content_type: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        self._content_type, self._body = content_type, body
        squeezed = gzip.compress(body, _LEVEL, mtime=0) if len(body) >= COMPRESSED_FROM else body
        self._squeezed = squeezed if len(squeezed) < len(body) * 9 // 10 else None
        self.etag = hashlib.sha256(body).hexdigest()[:32]
        self._headers = {"Cache-Control": "no-cache", **(more or {})}  # kept by browsers, asked for each time
        if self._squeezed is not None:
            self._headers["Vary"] = "Accept-Encoding"

    def answer(self, given: Mapping[str, str]) -> Answer:
        """The answer to a request with these headers (lower case)."""
        small = self._squeezed is not None and compress.taken(given.get("accept-encoding", ""))
        sent = self._headers | {"ETag": f'W/"{self.etag}"' if small else f'"{self.etag}"'}
        if headers.matches(given.get("if-none-match", ""), self.etag):
            return Answer(304, "", headers=sent)
        if self._squeezed is not None and small:
            return Answer(200, self._content_type, self._squeezed, sent | {"Content-Encoding": "gzip"})
        return Answer(200, self._content_type, self._body, sent)
