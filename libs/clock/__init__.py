"""Clock: now and new ids, from one place that a test can hold.

Wall time is UTC and aware. Pass a Clock in; call `SystemClock()` only in an `app.py`. Ids are UUIDv7 (RFC 9562): they
sort by time, which keeps index inserts at the right edge and lets an outbox id double as its order. It does not sleep:
waiting belongs to asyncio, with a deadline.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the time is."""

    def now(self) -> datetime:
        """Aware UTC wall time."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Aware UTC wall time."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


class HeldClock:
    """A clock that moves only when told; for tests."""

    def __init__(self, now: datetime | None = None) -> None:
        self._now = now or datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """The held time."""
        return self._now

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Moves both times."""
        self._now += by
        self._monotonic += by.total_seconds()


_lock = threading.Lock()
_last = 0


def new_id() -> uuid.UUID:
    """A UUIDv7: 48 bits of milliseconds, 12 of a counter, 62 random (RFC 9562, sections 5.7 and 6.2, method 1).

    Ids of one process rise, within a millisecond too, so that what was made later sorts later.
    """
    global _last  # noqa: PLW0603 -- the one thing that ids of a process share
    with _lock:
        now = time.time_ns() // 1_000_000 << 12
        _last = max(_last + 1, now | secrets.randbits(11) if now > _last else 0)
        ticks = _last
    value = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return uuid.UUID(int=value)
