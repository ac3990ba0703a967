"""NATS keys: Ed25519 seeds in files that only their owner can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nkeys

from libs.crypt.ca import write_private

USER = nkeys.PREFIX_BYTE_USER
ACCOUNT = nkeys.PREFIX_BYTE_ACCOUNT
_SEED = 32


def new_seed(kind: int) -> str:
    """A fresh seed, as text, of kind USER or ACCOUNT."""
    return bytes(nkeys.encode_seed(os.urandom(_SEED), kind)).decode()


def ensure(path: Path, kind: int) -> str:
    """The public key of the seed in a file; the seed is made when there is none."""
    if not path.exists():
        write_private(path, new_seed(kind) + "\n")
    return public(load(path))


def load(path: Path) -> Any:
    """The key pair whose seed a file holds; ValueError when others can read it."""
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} can be read by others; run: chmod 600 {path}")
    return nkeys.from_seed(path.read_bytes().strip())


def public(pair: Any) -> str:
    """The public key of a pair, as text."""
    return bytes(pair.public_key).decode()
