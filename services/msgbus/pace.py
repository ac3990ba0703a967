"""Pace: how fast one cluster may be heard. Beyond it its stream is read later, and no other cluster's is."""

from __future__ import annotations

import asyncio


class Pace:
    """So many messages and bytes per second, with a burst of a few seconds' worth; waiting is the reader's, nothing is dropped here.

    What a cluster sends beyond its pace waits in its own stream, whose own limits push out the oldest: a gap, told as one.
    """

    def __init__(self, messages: float, size: float, burst: float = 5.0) -> None:
        self._rates = (messages, size)
        self._burst = burst
        self._left = [messages * burst, size * burst]
        self._last = asyncio.get_running_loop().time()
        self.waited = 0.0

    async def take(self, size: int) -> None:
        """Waits until a message of `size` bytes may be taken."""
        now = asyncio.get_running_loop().time()
        passed, self._last = now - self._last, now
        owed = 0.0
        for i, (rate, cost) in enumerate(zip(self._rates, (1, size), strict=True)):
            self._left[i] = min(rate * self._burst, self._left[i] + passed * rate) - cost
            owed = max(owed, -self._left[i] / rate)
        if owed > 0:
            self.waited += owed
            await asyncio.sleep(owed)
