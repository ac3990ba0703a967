"""Fair turns."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from services.gateway.edge.turns import Crowded, Turns


class Work:
    """Calls of several flows that each run for some rounds of the loop, and who ran in which order."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[str] = []

    async def call(self, flow: str, weight: float = 1.0, rounds: int = 1) -> None:
        await self.turns.enter(flow, weight)
        try:
            self.order.append(flow)
            for _ in range(rounds):
                await asyncio.sleep(0)
        finally:
            self.turns.leave(flow)


async def test_nobody_waits_while_there_is_room() -> None:
    """Turns cost nothing until they are short, and nothing of them stays."""
    turns = Turns(8)
    work = Work(turns)
    await asyncio.gather(*(work.call(f"f{n}") for n in range(8)))
    assert len(turns) == 0


async def test_a_noisy_tenant_cannot_starve_others() -> None:
    """Behind a thousand waiting calls of one tenant, another's ten all run among the next few dozen."""
    turns = Turns(4, queue=1000)
    work = Work(turns)
    async with asyncio.TaskGroup() as group:
        for _ in range(1000):
            group.create_task(work.call("noisy"))
        await asyncio.sleep(0)
        for _ in range(10):
            group.create_task(work.call("quiet"))
    last = max(index for index, flow in enumerate(work.order) if flow == "quiet")
    assert last < 40, last
    assert Counter(work.order) == {"noisy": 1000, "quiet": 10}


async def test_weights_share_the_slots() -> None:
    """While both want more than there is, a flow of weight 3 gets three turns for one of weight 1."""
    turns = Turns(1, queue=1000)
    work = Work(turns)
    async with asyncio.TaskGroup() as group:
        for _ in range(400):
            group.create_task(work.call("heavy", 3.0))
            group.create_task(work.call("light", 1.0))
    ran = Counter(work.order[:200])
    assert 145 <= ran["heavy"] <= 155, ran


async def test_slow_calls_do_not_take_the_last_slots() -> None:
    """However slow one flow's calls are, another one starts at once."""
    turns = Turns(8)
    hold = asyncio.Event()

    async def slow() -> None:
        await turns.enter("slow")
        await hold.wait()
        turns.leave("slow")

    tasks = [asyncio.create_task(slow(), name="slow") for _ in range(50)]
    await asyncio.sleep(0)
    async with asyncio.timeout(0.2):
        await turns.enter("other")
    turns.leave("other")
    assert turns.waiting == 44
    hold.set()
    await asyncio.gather(*tasks)
    assert (len(turns), turns.waiting) == (0, 0)


async def test_waiting_is_bounded_in_number_and_time() -> None:
    """More than the queue takes, and longer than the time given, is refused; neither loses a slot."""
    turns = Turns(1, queue=1, seconds=0.05)
    await turns.enter("a")
    waiting = asyncio.create_task(turns.enter("a"), name="waits")
    await asyncio.sleep(0)
    with pytest.raises(Crowded):
        await turns.enter("a")
    with pytest.raises(Crowded):
        await waiting
    turns.leave("a")
    await turns.enter("b")
    turns.leave("b")
    assert len(turns) == 0


async def test_who_goes_while_waiting_leaves_its_place() -> None:
    """A cancelled wait gives back what it was just given, too."""
    turns = Turns(1)
    await turns.enter("a")
    gone, next_ = (asyncio.create_task(turns.enter("b"), name=name) for name in ("gone", "next"))
    await asyncio.sleep(0)
    turns.leave("a")  # the turn is b's now, whose task has not run yet
    gone.cancel()
    await asyncio.wait_for(next_, 1)
    with pytest.raises(asyncio.CancelledError):
        await gone
    turns.leave("b")
    assert len(turns) == 0
