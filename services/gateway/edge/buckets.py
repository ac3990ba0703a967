"""Token buckets in a bounded table."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import timedelta

from libs.clock import Clock


@dataclass(frozen=True, slots=True)
class Rate:
    """So many per second, and so many at once."""

    per_second: float
    burst: float

    def times(self, factor: float) -> Rate:
        """A multiple of it."""
        if factor == 1.0:
            return self
        return Rate(self.per_second * factor, self.burst * factor)


class Buckets:
    """One bucket per key; the least recently used go when there are too many, which forgives and never refuses.

    Args:
        clock: whose monotonic time fills them.
        most: keys kept.
    """

    def __init__(self, clock: Clock, *, most: int = 50_000) -> None:
        self._clock, self._most = clock, most
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # key → (tokens, when)

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: Hashable, rate: Rate, cost: float = 1.0) -> timedelta | None:
        """Takes tokens; None when they were there, else how long until they are."""
        now = self._clock.monotonic()
        level = self._level(key, rate, now)
        if level < cost:
            self._put(key, level, now)
            return timedelta(seconds=(cost - level) / rate.per_second)
        self._put(key, level - cost, now)
        return None

    def charge(self, key: Hashable, rate: Rate, cost: float) -> None:
        """Takes tokens whether they are there or not, down to one burst of debt."""
        now = self._clock.monotonic()
        self._put(key, max(self._level(key, rate, now) - cost, -rate.burst), now)

    def standing(self, key: Hashable, rate: Rate) -> dict[str, str]:
        """The headers that tell a client where it stands: the burst, what is left of it, seconds until it is whole again."""
        level = self._levels.get(key, (rate.burst, 0.0))[0]
        return {
            "ratelimit-limit": str(int(rate.burst)),
            "ratelimit-remaining": str(max(0, int(level))),
            "ratelimit-reset": str(math.ceil((rate.burst - level) / rate.per_second)),
        }

    def _level(self, key: Hashable, rate: Rate, now: float) -> float:
        level, when = self._levels.get(key, (rate.burst, now))
        return min(rate.burst, level + (now - when) * rate.per_second)

    def _put(self, key: Hashable, level: float, now: float) -> None:
        self._levels[key] = (level, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)
