"""The time that the current call has left, for the calls that it makes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

_ends: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Runs a block that has so many seconds; None leaves it without an end."""
    token = _ends.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        with suppress(ValueError):  # a generator closed by another task ends in another context, where nothing was set
            _ends.reset(token)


def left() -> float | None:
    """Seconds that the current call has left, never below 1 ms; None for no end."""
    ends = _ends.get()
    return None if ends is None else max(0.001, ends - time.monotonic())


def remaining(most: float) -> float:
    """Seconds that an outgoing call may take: `most`, or what the current call has left when that is less; never below 1 ms."""
    ends = _ends.get()
    return most if ends is None else max(0.001, min(most, ends - time.monotonic()))
