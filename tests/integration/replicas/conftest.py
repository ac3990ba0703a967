"""Two gateways in processes of their own, on one PostgreSQL and one NATS, msgbus behind them, and fifty simulated agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from deploy.local import part as parts
from deploy.local import services
from deploy.local.certificates import Certificates
from deploy.local.part import Part
from deploy.local.ports import Ports
from services.gateway.config import Config
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
        msgbus = f"127.0.0.1:{Ports(documented=False).take('msgbus')}"
        for name in ("a", "b"):
            (folder / name).mkdir()
            config = configuration(
                folder / name, database, nats, hub_certificates, Ports(documented=False), reads_per_address=100_000, msgbus_address=msgbus
            )
            gateways.append(GatewayProcess(name, config, folder / f"{name}.log"))
            stack.push_async_callback(gateways[-1].stop)
            await gateways[-1].start()
        internal = ",".join(gateway.config.internal_address for gateway in gateways)
        await stack.enter_async_context(parts.running(_msgbus(gateways[0].config, hub_certificates, nats, internal, folder / "msgbus.log")))
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


def _msgbus(gateway: Config, certificates: Certificates, nats: NatsServer, internal: str, log: Path) -> Part:
    """msgbus, which knows both gateways."""
    port = int(gateway.msgbus_address.rpartition(":")[2])
    facts = {
        "database_url_file": gateway.database_url_file,
        "resume_key_file": certificates.master_key,
        "nats_url": nats.url,
        "nats_seed_file": nats.seed_file("msgbus"),
        "certificate_file": certificates.certificate("msgbus"),
        "key_file": certificates.key("msgbus"),
        "ca_file": certificates.ca,
        "gateway_address": internal,
        "grpc_address": gateway.msgbus_address,
        "metrics_address": f"127.0.0.1:{Ports(documented=False).take('msgbus-metrics')}",
    }
    return services.part("msgbus", facts, log, lambda: parts.until_open(port))
