"""What the contract tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from tests.contract.edge import Edge
from tests.contract.edge import edge as running
from tests.kit.data import FreshDatabase
from tests.kit.nats import NatsServer


@pytest.fixture(scope="module")
async def edge(
    database: FreshDatabase,
    nats_server: NatsServer,
    hub_certificates: Certificates,
    free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Edge]:
    """Gateway, msgbus and worker of a test module's own."""
    async with running(tmp_path_factory.mktemp("edge"), database.dsn, nats_server, hub_certificates, free_ports) as found:
        yield found
