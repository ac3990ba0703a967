"""Where an agent dials next."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from services.agent.hubs import Hubs

THREE = "127.0.0.1:1, 127.0.0.2:2,[::1]:3"


async def test_all_addresses_are_tried_before_one_comes_again() -> None:
    """Rounds of all three, whatever their order; the last of a round is not the first of the next."""
    hubs = Hubs.of(THREE)
    for _ in range(20):
        assert {await hubs.next() for _ in range(3)} == {"127.0.0.1:1", "127.0.0.2:2", "[::1]:3"}
    taken = [await hubs.next() for _ in range(60)]
    assert all(a != b for a, b in pairwise(taken))


async def test_after_one_that_answered_all_others_are_worth_a_try() -> None:
    """A gateway that was reached and lost comes last."""
    hubs = Hubs.of(THREE)
    first = await hubs.next()
    await hubs.next()
    reached = await hubs.next()
    hubs.reached()
    assert {await hubs.next(), await hubs.next()} == {"127.0.0.1:1", "127.0.0.2:2", "[::1]:3"} - {reached}
    assert first != reached


async def test_agents_spread() -> None:
    """Many agents with the same list begin at different addresses."""
    begun = Counter([await Hubs.of(THREE).next() for _ in range(300)])
    assert len(begun) == 3
    assert min(begun.values()) > 50


async def test_one_address_is_dialled_again_and_again() -> None:
    """There is no other."""
    hubs = Hubs.of("127.0.0.1:1")
    assert [await hubs.next() for _ in range(3)] == ["127.0.0.1:1"] * 3


async def test_a_name_counts_as_all_its_addresses_and_an_edge_as_itself() -> None:
    """`localhost` resolves; a name that does not is dialled as it is, so that the dial says what is wrong."""
    assert await Hubs.of("localhost:5").next() in ("127.0.0.1:5", "[::1]:5")
    assert await Hubs.of("no-such-host.invalid:5").next() == "no-such-host.invalid:5"
    assert await Hubs.of("https://hub.example:8443").next() == "https://hub.example:8443"
