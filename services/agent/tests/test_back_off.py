"""How long an agent waits before it dials again: in a time and with a chance that the test makes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from services.agent.link import AgentLink

_TICK = 0.05


class Dials(AgentLink):
    """An agent whose tunnels stand as long as a test says, and that tells when it dialled and when it lost the tunnel."""

    def __init__(self, stood: list[float]) -> None:
        super().__init__(
            addresses="hub:1", tls=cast("Any", None), cluster_uid="c", version="1", pipeline=cast("Any", None), proxy=cast("Any", None)
        )  # fmt: skip
        self._stood = stood
        self.times: list[tuple[float, float]] = []
        self.enough = asyncio.Event()

    async def _until_lost_or_left(self) -> bool:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        if len(self.times) == len(self._stood):
            self.enough.set()
            await asyncio.Event().wait()
        await asyncio.sleep(self._stood[len(self.times)])
        self.times.append((begun, loop.time()))
        return False


async def _waits(monkeypatch: pytest.MonkeyPatch, stood: list[float], part: float) -> tuple[list[tuple[float, float]], list[float]]:
    """The bounds that chance was asked for, and the waits between a loss and the next dial, when it chooses `part` of the way."""
    now = 1000.0
    asked: list[tuple[float, float]] = []

    def chosen(low: float, high: float) -> float:
        asked.append((low, high))
        return low + (high - low) * part

    monkeypatch.setattr("services.agent.link.random.uniform", chosen)
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as clock:
        clock.setattr(loop, "time", lambda: now)
        agent = Dials(stood)
        running = asyncio.create_task(agent.run())
        while not agent.enough.is_set():
            now += _TICK
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
    losses = [lost for _, lost in agent.times]
    dials = [begun for begun, _ in agent.times[1:]]
    return asked, [dial - lost for lost, dial in zip(losses, dials, strict=False)]


async def test_the_wait_doubles_to_half_a_minute_and_starts_anew_after_a_tunnel_that_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel of a few seconds is no success: a hub that greets and hangs up is not stormed."""
    asked, waits = await _waits(monkeypatch, [0.0] * 8 + [4.0, 60.0, 0.0, 0.0], 1.0)
    expected = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5, 1, 2]
    assert [high for _, high in asked] == expected
    assert waits == pytest.approx(expected[:-1], abs=4 * _TICK)


@pytest.mark.parametrize("part", [0.0, 0.5])
async def test_the_wait_is_a_random_part_and_never_none(monkeypatch: pytest.MonkeyPatch, part: float) -> None:
    """Many agents that lost one hub spread over the whole wait; the least is a tenth of a second."""
    asked, waits = await _waits(monkeypatch, [0.0] * 9, part)
    assert {low for low, _ in asked} == {0.1}
    assert waits == pytest.approx([low + (high - low) * part for low, high in asked[:-1]], abs=4 * _TICK)
