"""Ids and held time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from libs.clock import HeldClock, new_id


def test_ids_rise_and_never_repeat() -> None:
    """Also many in one millisecond, from several threads; the time in them is now."""
    ids = [new_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    with ThreadPoolExecutor(4) as pool:
        ids += [i for made in pool.map(lambda _: [new_id() for _ in range(2_000)], range(4)) for i in made]
    assert len(set(ids)) == len(ids)
    assert {(i.version, i.variant) for i in ids} == {(7, "specified in RFC 4122")}
    assert abs((new_id().int >> 80) - time.time_ns() // 1_000_000) < 1_000


def test_a_held_clock_moves_only_when_told() -> None:
    """Both times move together."""
    clock = HeldClock()
    before = clock.now()
    clock.advance(timedelta(minutes=2))
    assert clock.now() - before == timedelta(minutes=2)
    assert clock.monotonic() == 120.0
