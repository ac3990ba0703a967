"""One hub for all tests of the link, and a cluster behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.crypt.ca import Authority
from tests.integration.link.rig import Rig
from tests.integration.link.world import OPS, World, world_of


@pytest.fixture(scope="session")
async def rig(tmp_path_factory: pytest.TempPathFactory, hub_ca: Authority) -> AsyncIterator[Rig]:
    """A hub that listens for agents, and its edge."""
    async with Rig(tmp_path_factory.mktemp("link"), hub_ca).running() as running:
        yield running


@pytest.fixture
async def world(rig: Rig, tmp_path: Path) -> AsyncIterator[World]:
    """A cluster named `local`, and user `dev` with a group there."""
    async with world_of(rig, tmp_path, "dev", OPS) as found:
        yield found
