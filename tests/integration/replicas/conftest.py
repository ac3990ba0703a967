"""Two gateways in processes of their own, on one PostgreSQL and one NATS, and fifty simulated agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from tests.integration.replicas.hub import AGENTS, Hub
from tests.kit import agents as simulated
from tests.kit.data import DatabaseServer
from tests.kit.gateway import configuration
from tests.kit.nats import NatsServer, nats_server_part
from tests.kit.replicas import GatewayProcess


@pytest.fixture(scope="module")
async def _hub(tmp_path_factory: pytest.TempPathFactory, postgres: DatabaseServer, hub_certificates: Certificates) -> AsyncIterator[Hub]:
    folder: Path = tmp_path_factory.mktemp("replicas")
    folder.chmod(0o700)
    nats = NatsServer.create(folder, hub_certificates, Ports(documented=False).take("nats"))
    async with AsyncExitStack() as stack:
        nats.process = await stack.enter_async_context(parts.running(nats_server_part(nats)))
        database = await stack.enter_async_context(postgres.fresh("replicas"))
        gateways = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            config = configuration(folder / name, database, nats, hub_certificates, Ports(documented=False), reads_per_address=100_000)
            gateways.append(GatewayProcess(name, config, folder / f"{name}.log"))
            stack.push_async_callback(gateways[-1].stop)
            await gateways[-1].start()
        agents = await simulated.joined(
            AGENTS, dsn=database.dsn, authority=hub_certificates.authority, folder=folder, ca_file=hub_certificates.ca
        )
        hub = Hub(gateways, agents, nats, database.dsn)
        await stack.enter_async_context(simulated.running(agents, hub.addresses))
        await stack.enter_async_context(hub.signed_in())
        yield hub


@pytest.fixture
async def hub(_hub: Hub) -> Hub:
    """The hub whole: both gateways run and every agent is online."""
    await _hub.whole()
    return _hub
