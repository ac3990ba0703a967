"""Pings of one end: whether the other lives, how long a round trip takes, and how far the other's clock is ahead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from libs.tunnel.frames import HEADER, PING, PONG, TIMES
from libs.tunnel.limits import Limits

_LOOK = 0.05
_DEAF = 5  # times the silence that is borne: one that talks and answers no ping does not read
_MOST_AHEAD_MILLIS = 50 * 365 * 86_400_000  # a clock further away is no clock


def wall_millis() -> int:
    """This machine's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Pings:
    """Asks for signs of life from its making until it is stopped.

    Attributes:
        rtt: last measured round trip, seconds.
        peer_ahead_millis: how far the peer's wall clock is ahead of ours.
        heard: when something last came, by the loop's time; whoever reads sets it.
    """

    def __init__(
        self, limits: Limits, *, send: Callable[[bytes], None], give_up: Callable[[str], None], now_millis: Callable[[], int] = wall_millis
    ) -> None:
        """Starts to ask.

        Args:
            limits: how often, and how long a silence is borne.
            send: takes a frame.
            give_up: told why, once the peer was silent for too long.
            now_millis: wall time that is told to the peer.
        """
        self.rtt = 0.0
        self.peer_ahead_millis = 0
        self._loop = asyncio.get_running_loop()
        self.heard = self._answered = self._began = self._loop.time()
        self._limits, self._send, self._give_up, self._now_millis = limits, send, give_up, now_millis
        self._due = self.heard + limits.ping_every
        self._timer = self._loop.call_later(limits.ping_every, self._tick)

    def ask(self) -> None:
        """Asks for a sign of life, which also measures the round trip and the peer's clock."""
        self._send(HEADER.pack(PING, 0, 0, TIMES.size) + TIMES.pack(int(self._loop.time() * 1e9), self._now_millis()))

    def got(self, kind: int, payload: bytes) -> None:
        """The peer asks, or answers."""
        token, millis = TIMES.unpack(payload)
        if kind == PING:
            self._send(HEADER.pack(PONG, 0, 0, TIMES.size) + TIMES.pack(token, self._now_millis()))
            return
        now = self._loop.time()
        taken = now - token / 1e9
        if not 0 <= taken <= now - self._began + _LOOK:
            return  # nobody asked that
        self.rtt, self._answered = taken, now
        ahead = int(millis + taken * 500) - self._now_millis()
        self.peer_ahead_millis = min(max(ahead, -_MOST_AHEAD_MILLIS), _MOST_AHEAD_MILLIS)

    def peer_now_millis(self) -> int:
        """The peer's wall time, as far as pings tell."""
        return self._now_millis() + self.peer_ahead_millis

    def stop(self) -> None:
        """The connection is gone."""
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        late = now - self._due
        silence = now - self.heard
        left = self._limits.ping_every + self._limits.ping_timeout - silence
        if left < 0 and late < self._limits.ping_every:
            self._give_up(f"the peer was silent for {silence:.1f} s")
            return
        if now - self._answered > _DEAF * (self._limits.ping_every + self._limits.ping_timeout) and late < self._limits.ping_every:
            self._give_up("the peer answers no ping")
            return
        self.ask()
        pause = self._limits.ping_every
        if left >= 0:
            pause = min(pause, left + _LOOK)  # a silent peer is given up in time, not a ping later
        self._due = now + pause
        self._timer = self._loop.call_later(pause, self._tick)
