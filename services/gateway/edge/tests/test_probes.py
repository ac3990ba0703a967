"""Whether the gateway is ready, as often as anybody asks."""

from __future__ import annotations

import asyncio

import pytest

from libs.faults import Unavailable
from services.gateway.edge import probes
from services.gateway.edge.probes import Probes


class Part:
    """A part that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False

    async def __call__(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")


async def test_a_flood_of_questions_asks_the_parts_once() -> None:
    """Everyone may ask without a token, so the answer is shared; a drain shows at once all the same."""
    part = Part()
    made = Probes({"database": part}, {"nats": lambda: False}, dict)
    answers = await asyncio.gather(*[made.readyz() for _ in range(100)])
    assert {(status, body) for status, _, body in answers} == {(200, b'{"status":"ready","parts":{"nats":"away","database":"ok"}}')}
    assert part.asked == 1
    await made.drain()
    assert (await made.readyz())[0] == 503


async def test_what_is_away_shows_and_so_does_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is good for a moment only."""
    monkeypatch.setattr(probes, "_GOOD_SECONDS", 0.0)
    part = Part()
    made = Probes({"database": part}, {}, dict)
    for away, status in ((False, 200), (True, 503), (False, 200)):
        part.away = away
        assert (await made.readyz())[0] == status
