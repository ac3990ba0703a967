"""KeyedQueue: which key may run now. Pure: it is told the time and starts nothing.

It holds a key once, however often it is added, so its length is bounded by the number of objects there are.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays after failures, in seconds: `first`, doubled each time up to `longest`, each shortened by up to half (jitter)."""

    first: float = 0.2
    longest: float = 60.0
    chance: Callable[[], float] = field(default=random.random)

    def delay(self, failures: int) -> float:
        """The delay after so many failures in a row, at least one."""
        ceiling = min(self.longest, self.first * 2.0 ** min(failures - 1, 32))
        return ceiling * (1 - self.chance() / 2)


class KeyedQueue:
    """Keys with the time at which each may run.

    Args:
        now: seconds that never go back.
        backoff: delays after failures.
        spacing: least seconds between two starts of one key.
    """

    def __init__(self, now: Callable[[], float], *, backoff: Backoff | None = None, spacing: float = 0.1) -> None:
        self._now = now
        self._backoff = backoff or Backoff()
        self._spacing = spacing
        self._due: dict[str, float] = {}
        self._order: list[tuple[float, str]] = []  # may hold entries that `_due` no longer agrees with
        self._working: dict[str, float] = {}  # started at
        self._resting: dict[str, float] = {}  # earliest next start of keys that ran a moment ago
        self._failures: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: str, after: float = 0.0) -> None:
        """Lets a key run `after` seconds from now at the latest; an earlier time it already has stays."""
        now = self._now()
        due = max(now + after, self._resting.get(key, now))
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            if key not in self._working:
                heapq.heappush(self._order, (due, key))

    def take(self) -> str | None:
        """A key that is due and not at work; the caller must `done`, `again` or `failed` it. None when there is none."""
        now = self._now()
        while self._order and self._order[0][0] <= now:
            due, key = heapq.heappop(self._order)
            if self._due.get(key) == due and key not in self._working:
                del self._due[key]
                self._working[key] = now
                return key
        return None

    def wait(self) -> float | None:
        """Seconds until some key is due; None when no key waits for time."""
        while self._order and (self._due.get(self._order[0][1]) != self._order[0][0] or self._order[0][1] in self._working):
            heapq.heappop(self._order)
        return max(0.0, self._order[0][0] - self._now()) if self._order else None

    def done(self, key: str) -> None:
        """The run ended well; failures are forgotten."""
        self._failures.pop(key, None)
        self._release(key)

    def again(self, key: str, after: float) -> None:
        """The run ended well, and the key wants another look."""
        self.done(key)
        self.add(key, after)

    def failed(self, key: str, at_least: float = 0.0) -> float:
        """The run failed; the key comes back after a grown delay, which is returned. An event still brings it back sooner."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._release(key)
        delay = max(at_least, self._backoff.delay(failures))
        self.add(key, delay)
        return delay

    def failures(self, key: str) -> int:
        """Failures of a key in a row."""
        return self._failures.get(key, 0)

    def _release(self, key: str) -> None:
        rested = self._working.pop(key) + self._spacing
        now = self._now()
        self._resting = {other: at for other, at in self._resting.items() if at > now}
        if rested > now:
            self._resting[key] = rested
        if key in self._due:  # added while it was at work
            self._due[key] = max(self._due[key], rested)
            heapq.heappush(self._order, (self._due[key], key))
