"""The time that the current call has left, for the calls that it makes."""

from __future__ import annotations

import time
from contextlib import suppress
from contextvars import ContextVar, Token

_ends: ContextVar[float | None] = ContextVar("deadline", default=None)


class within:  # noqa: N801 -- it is used as a function
    """Runs a block that has so many seconds; None leaves it without an end."""

    __slots__ = ("_ends", "_token")
    _token: Token[float | None]

    def __init__(self, seconds: float | None) -> None:
        self._ends = None if seconds is None else time.monotonic() + seconds

    def __enter__(self) -> None:
        self._token = _ends.set(self._ends)

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):  # a generator closed by another task ends in another context, where nothing was set
            _ends.reset(self._token)


def left() -> float | None:
    """Seconds that the current call has left, never below 1 ms; None for no end."""
    ends = _ends.get()
    return None if ends is None else max(0.001, ends - time.monotonic())


def remaining(most: float) -> float:
    """Seconds that an outgoing call may take: `most`, or what the current call has left when that is less; never below 1 ms."""
    ends = _ends.get()
    return most if ends is None else max(0.001, min(most, ends - time.monotonic()))
