"""Waiting for what must become true."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable
from typing import Any


def timescale() -> float:
    """By how much a slow machine stretches every deadline of the tests."""
    return float(os.environ.get("KUBEGEMS_TEST_TIMESCALE", "1"))


async def eventually(check: Callable[[], Any], *, within: float, every: float = 0.05, what: str = "") -> Any:
    """Asks until the answer is truthy, and returns it.

    Args:
        check: plain or async; an AssertionError counts as "not yet", anything else ends the wait. One that is declared
            to return None passes when its asserts do.
        within: seconds, before `KUBEGEMS_TEST_TIMESCALE`.
        every: seconds between two questions.
        what: printed with the time that it took.
    """
    started = time.monotonic()
    asserts_only = getattr(check, "__annotations__", {}).get("return", "") in ("None", None)
    last: Any = None
    while True:
        try:
            found = check()
            last = await found if inspect.isawaitable(found) else found
            if last or (asserts_only and last is None):
                if what:
                    print(f"{what}: {time.monotonic() - started:.2f} s of {within:g} s")
                return last
        except AssertionError as error:
            last = error
        if time.monotonic() - started > within * timescale():
            raise AssertionError(f"not within {within:g} s: {what or check}; last: {last!r}")
        await asyncio.sleep(every)
