"""One platform for all e2e tests of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.world import World, world


@pytest.fixture(scope="session")
async def platform(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The running platform with its world; made once."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    async with world(stack.endpoints, home) as made:
        yield made
