"""One hub for all tests of the link."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from libs.crypt.ca import Authority
from tests.integration.link.rig import Rig


@pytest.fixture(scope="session")
async def rig(tmp_path_factory: pytest.TempPathFactory, hub_ca: Authority) -> AsyncIterator[Rig]:
    """A hub that listens for agents, and its edge."""
    async with Rig(tmp_path_factory.mktemp("link"), hub_ca).running() as running:
        yield running
