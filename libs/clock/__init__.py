"""Clock: now and new ids, from one place that a test can hold.

Wall time is UTC and aware. Pass a Clock in; call `SystemClock()` only in an `app.py`. Ids are UUIDv7 (RFC 9562): they
sort by time, which keeps index inserts at the right edge and lets an outbox id double as its order. It does not sleep:
waiting belongs to asyncio, with a deadline.
"""

from __future__ import annotations

import secrets
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


def new_id() -> uuid.UUID:
    """A UUIDv7: 48 bits of milliseconds, 74 random bits (RFC 9562, section 5.7)."""
    millis = time.time_ns() // 1_000_000
    value = millis << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return uuid.UUID(int=value)
