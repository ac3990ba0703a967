"""The hub's version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _read() -> str:
    try:
        return version("kubegems")
    except PackageNotFoundError:  # run from a checkout
        return "0.1.0"


VERSION = _read()
