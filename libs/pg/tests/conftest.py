"""A Database on the test run's PostgreSQL."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.pg import Database


@pytest.fixture(scope="module")
async def pg(database: Any) -> AsyncIterator[Database]:
    """The module's database, connected."""
    found = await Database.connect(database.dsn, application_name="test", max_size=6)
    yield found
    await found.close()
