"""The README's walk-through, run as it stands on the tests' own platform."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.walkthrough import walk
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(300)]
README = Path(__file__).parents[2] / "README.md"


async def test_the_walk_through_does_what_it_says(stack: Platform) -> None:
    """Every command of the README's walk-through prints what stands below it."""
    said: list[str] = []
    assert await walk(README, stack.layout.env, said.append) > 15
