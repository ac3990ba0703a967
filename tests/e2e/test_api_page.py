"""The examples of docs/api.md, run as they stand on the tests' own platform."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.walkthrough import walk
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(300)]
PAGE = Path(__file__).parents[2] / "docs/api.md"


async def test_the_examples_do_what_they_say(stack: Platform) -> None:
    """Each call by curl prints what stands below it."""
    said: list[str] = []
    assert await walk(PAGE, stack.layout.env, said.append, section="Examples") >= 8
