"""What is told of tunnels that come and go: the latest of each cluster, and which flap."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.gateway.link import announcer as announcers
from services.gateway.link.announcer import Announcer
from services.gateway.link.flaps import Flaps


async def test_a_change_that_is_not_taken_holds_up_no_other(eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told again until it is taken, as what it is by then; the others are told meanwhile, once each."""
    monkeypatch.setattr(announcers, "_RETRY_SECONDS", 0.02)
    told: list[tuple[str, bool, int]] = []
    locked = True

    async def on_change(uid: str, online: bool, _version: str, number: int) -> None:
        if uid == "stuck" and locked:
            raise OSError("its row is locked")
        told.append((uid, online, number))

    announcer = Announcer(on_change)
    announcer.start()
    for uid in ("stuck", "b", "c"):
        announcer.tell(uid, "1", 1, online=True)
    await eventually(lambda: told == [("b", True, 1), ("c", True, 1)], within=5)
    announcer.tell("stuck", "1", 1, online=False)
    locked = False
    await eventually(lambda: told[2:] == [("stuck", False, 1)], within=5)
    await announcer.close()


async def test_a_change_that_hangs_is_given_up(eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And told again; so it neither waits for ever nor keeps the others waiting for longer."""
    monkeypatch.setattr(announcers, "_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(announcers, "_TELL_SECONDS", 0.05)
    told: list[str] = []

    async def on_change(uid: str, *_: object) -> None:
        if uid == "hangs" and told.count("asked") < 3:
            told.append("asked")
            await asyncio.Event().wait()
        told.append(uid)

    announcer = Announcer(on_change)
    announcer.start()
    for uid in ("hangs", "b"):
        announcer.tell(uid, "1", 1, online=True)
    await eventually(lambda: told == ["asked", "b", "asked", "asked", "hangs"], within=5)
    await announcer.close()


def test_flapping_is_three_replacements_within_a_minute() -> None:
    """Fewer, or over a longer time, are not; it is over a minute after the first of the last three."""
    flaps = Flaps()
    assert [flaps.replaced("a", at) for at in (0.0, 70.0, 80.0, 90.0)] == [False, False, False, True]
    assert flaps.seen("a", 129.0)
    assert not flaps.seen("a", 131.0)
    assert not flaps.seen("b", 90.0)


def test_clusters_that_flapped_long_ago_are_forgotten() -> None:
    """However many there were; one that goes on is kept."""
    flaps = Flaps()
    for number in range(1000):
        flaps.replaced(f"cluster {number}", number)
        flaps.replaced("flapping", number)
    assert len(flaps._replaced) <= 61
    assert flaps.seen("flapping", 999)
