"""One platform for all e2e tests of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.e2e.world import World, world
from tests.kit.jaeger import Jaeger
from tests.kit.platform import Platform


@pytest.fixture(scope="session")
async def platform(stack: Platform, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The running platform with its world; made once."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    async with world(stack.endpoints, home) as made:
        yield made


@pytest.fixture(scope="session")
def jaeger_query(stack: Platform) -> Jaeger:
    """The query API of the platform's Jaeger."""
    return Jaeger(stack.endpoints["jaeger"])
