"""Secrets at rest: AES-256-GCM under a key from a file, bound to what they belong to."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12  # bytes, NIST SP 800-38D
_KEY = 32


class Broken(Exception):
    """What was to be opened was changed, belongs to something else, or was sealed under another key."""


class Box:
    """Seals and opens bytes."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY:
            raise ValueError(f"the key must be {_KEY} bytes")
        self._cipher = AESGCM(key)

    @classmethod
    def load(cls, key_file: Path) -> Box:
        """The box whose key (base64, one line) a file holds; ValueError when others can read it."""
        if key_file.stat().st_mode & 0o077:
            raise ValueError(f"{key_file} can be read by others; run: chmod 600 {key_file}")
        return cls(base64.b64decode(key_file.read_text().strip(), validate=True))

    @staticmethod
    def new_key() -> str:
        """A fresh key as `load` wants it."""
        return base64.b64encode(os.urandom(_KEY)).decode()

    def seal(self, content: bytes, context: str) -> bytes:
        """Sealed bytes that open only with the same context, such as a table and row id."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, content, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """The content; raises Broken."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], context.encode())
        except InvalidTag as error:
            raise Broken("cannot be opened") from error
