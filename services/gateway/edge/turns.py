"""Weighted fair turns: who runs next when more is asked than can run at once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

_RESERVE = 4  # a quarter of the slots is kept from whoever holds all the others


class Crowded(Exception):
    """Too many of the same flow wait already, or one waited too long."""


@dataclass(slots=True, eq=False)
class _Flow:
    weight: float
    at: float  # virtual time of its next turn
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Turns:
    """Slots that flows (tenants, or callers without one) share by weight.

    While slots are free nobody waits. When they are not, a freed slot goes to the flow that has had least for its weight,
    first come first served inside a flow. No flow holds more than three quarters of the slots, so that one whose calls are
    slow does not hold up the others either.

    Args:
        slots: how many run at once.
        queue: how many of one flow may wait.
        seconds: how long one may wait.
    """

    def __init__(self, slots: int, *, queue: int = 200, seconds: float = 5.0) -> None:
        self._slots, self._queue, self._seconds = slots, queue, seconds
        self._share = max(1, slots - slots // _RESERVE)
        self._busy, self._now = 0, 0.0
        self._flows: dict[Hashable, _Flow] = {}
        self._waiting: OrderedDict[Hashable, _Flow] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(flow.waiting) for flow in self._waiting.values())

    def __len__(self) -> int:
        """Flows that run or wait."""
        return len(self._flows)

    async def enter(self, key: Hashable, weight: float = 1.0) -> None:
        """Waits for a turn, to be given back by `leave`; raises Crowded."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(weight, self._now)
        if self._busy < self._slots and flow.running < self._share and not flow.waiting:
            self._start(flow)
            return
        if len(flow.waiting) >= self._queue:
            raise Crowded
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        flow.waiting.append(turn)
        self._waiting[key] = flow
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except BaseException as error:
            self._gave_up(key, flow, turn)
            if isinstance(error, TimeoutError):
                raise Crowded from error
            raise

    def leave(self, key: Hashable) -> None:
        """Gives a turn back."""
        flow = self._flows[key]
        flow.running -= 1
        self._busy -= 1
        self._next()
        self._forget(key, flow)

    def _start(self, flow: _Flow) -> None:
        flow.running += 1
        self._busy += 1
        flow.at = max(flow.at, self._now) + 1.0 / flow.weight

    def _next(self) -> None:
        """Gives free slots to the waiting flows that have had least."""
        while self._busy < self._slots:
            able = [(flow.at, key) for key, flow in self._waiting.items() if flow.running < self._share]
            if not able:
                return
            at, key = min(able, key=lambda pair: pair[0])
            flow = self._waiting[key]
            turn = flow.waiting.popleft()
            if not flow.waiting:
                del self._waiting[key]
            if not turn.done():
                self._now = max(self._now, at)
                self._start(flow)
                turn.set_result(None)

    def _gave_up(self, key: Hashable, flow: _Flow, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():  # the turn came in the same moment
            self.leave(key)
            return
        if turn in flow.waiting:
            flow.waiting.remove(turn)
        if not flow.waiting:
            self._waiting.pop(key, None)
        self._forget(key, flow)

    def _forget(self, key: Hashable, flow: _Flow) -> None:
        if not flow.running and not flow.waiting:
            self._flows.pop(key, None)
