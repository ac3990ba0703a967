"""Loop, in virtual time: hours pass in milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from libs.faults import Unavailable
from libs.reconcile import DONE, Again, Backoff, Loop, Result
from libs.reconcile.tests import virtual

BACKOFF = Backoff(first=1.0, longest=60.0, chance=lambda: 0.0)


@contextlib.asynccontextmanager
async def running(loop: Loop) -> AsyncIterator[None]:
    task = asyncio.create_task(loop.run(), name="loop")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_failures_back_off_and_other_keys_go_on() -> None:
    """A key that always fails is tried at 0, 1, 3, 7, … s, while another runs at once."""
    starts: list[float] = []

    async def reconcile(key: str) -> Result:
        if key == "good":
            return DONE
        starts.append(asyncio.get_running_loop().time())
        raise Unavailable("away")

    async def story() -> None:
        loop = Loop("test", reconcile, backoff=BACKOFF, workers=1)
        async with running(loop):
            loop.add("bad")
            loop.add("good")
            await asyncio.sleep(16)

    virtual.run(story())
    assert [round(start) for start in starts] == [0, 1, 3, 7, 15]


def test_a_retry_after_is_kept() -> None:
    """A server that asks for 30 seconds gets them."""
    starts: list[float] = []

    async def reconcile(_key: str) -> Result:
        starts.append(asyncio.get_running_loop().time())
        if len(starts) == 1:
            raise Unavailable("later", retry_after=timedelta(seconds=30))
        return DONE

    async def story() -> None:
        loop = Loop("test", reconcile, backoff=BACKOFF)
        async with running(loop):
            loop.add("a")
            await asyncio.sleep(60)

    virtual.run(story())
    assert [round(start) for start in starts] == [0, 30]


def test_again_comes_back_without_growing() -> None:
    """Again(5 s) every time runs every 5 s."""
    starts: list[float] = []

    async def reconcile(_key: str) -> Result:
        starts.append(asyncio.get_running_loop().time())
        return Again(timedelta(seconds=5))

    async def story() -> None:
        loop = Loop("test", reconcile)
        async with running(loop):
            loop.add("a")
            await asyncio.sleep(21)

    virtual.run(story())
    assert [round(start) for start in starts] == [0, 5, 10, 15, 20]


def test_a_crash_with_one_key_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Even a mistake of ours is one key's, and is tried again."""
    seen: list[str] = []

    async def reconcile(key: str) -> Result:
        seen.append(key)
        if key == "bad" and seen.count("bad") == 1:
            raise KeyError("ours")
        return DONE

    async def story() -> None:
        loop = Loop("test", reconcile, backoff=BACKOFF)
        async with running(loop):
            loop.add("bad")
            loop.add("good")
            await asyncio.sleep(5)

    virtual.run(story())
    assert seen == ["bad", "good", "bad"]


def test_a_run_that_hangs_ends_at_its_deadline() -> None:
    """Nothing waits for ever: the run is cut and the key comes back."""
    starts: list[float] = []

    async def reconcile(_key: str) -> Result:
        starts.append(asyncio.get_running_loop().time())
        if len(starts) == 1:
            await asyncio.sleep(10_000)
        return DONE

    async def story() -> None:
        loop = Loop("test", reconcile, backoff=BACKOFF, deadline=30)
        async with running(loop):
            loop.add("a")
            await asyncio.sleep(100)

    virtual.run(story())
    assert [round(start) for start in starts] == [0, 31]


def test_one_worker_per_key_and_several_keys_at_once() -> None:
    """Three keys overlap; one key never does, however often it is added."""
    busy: set[str] = set()
    most = 0

    async def reconcile(key: str) -> Result:
        nonlocal most
        assert key not in busy
        busy.add(key)
        most = max(most, len(busy))
        await asyncio.sleep(1)
        busy.discard(key)
        return DONE

    async def story() -> None:
        loop = Loop("test", reconcile, workers=3)
        async with running(loop):
            for _ in range(20):
                for key in "abc":
                    loop.add(key)
                await asyncio.sleep(0.3)

    virtual.run(story())
    assert most == 3
