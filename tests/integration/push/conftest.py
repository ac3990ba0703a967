"""One rig for all tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.push.rig import Rig
from tests.integration.push.rig import rig as built


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory, hub_certificates: Any, free_ports: Any, database: Any) -> AsyncIterator[Rig]:
    """Two replicas of msgbus and what is around them."""
    folder = tmp_path_factory.mktemp("push")
    folder.chmod(0o700)
    async with built(folder, hub_certificates, free_ports, database.dsn) as found:
        yield found
