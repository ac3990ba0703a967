"""Flapping: two agents with one certificate push each other out."""

from __future__ import annotations

from collections import deque

_MANY = 3  # replacements within _SECONDS
_SECONDS = 60.0


class Flaps:
    """When tunnels of each cluster were replaced by newer ones."""

    def __init__(self) -> None:
        self._replaced: dict[str, deque[float]] = {}

    def replaced(self, uid: str, now: float) -> bool:
        """Notes a replacement, and forgets the clusters whose last one is long ago; whether there are too many of them."""
        times = self._replaced.pop(uid, None) or deque(maxlen=_MANY)
        times.append(now)
        self._replaced[uid] = times  # behind all that were replaced before
        while now - self._replaced[first := next(iter(self._replaced))][-1] >= _SECONDS:
            del self._replaced[first]
        return self.seen(uid, now)

    def seen(self, uid: str, now: float) -> bool:
        """Whether there were too many lately."""
        times = self._replaced.get(uid)
        return times is not None and len(times) == _MANY and now - times[0] < _SECONDS
