"""A hub for real agents, whose certificates live for seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from libs.bus import Bus
from tests.kit.data import FreshDatabase
from tests.kit.gateway import PASSWORD, Gateway, configuration, running
from tests.kit.nats import NatsServer
from tests.kit.rest import User

LIFE_SECONDS = 24.0


@dataclass(slots=True)
class Hub:
    """A gateway whose agents' certificates live for seconds."""

    gateway: Gateway
    admin: User
    nats: NatsServer

    @property
    def edge_port(self) -> int:
        """The one port."""
        return urlsplit(self.gateway.config.public_url).port or 0

    async def token(self, cluster: str, *, one_port: bool = True) -> Any:
        """Adds a cluster; what joins it."""
        await self.admin.post("/clusters", {"clusterId": cluster, "cluster": {"displayName": cluster}})
        return await self.admin.post(f"/clusters/{cluster}/joinTokens", {"onePort": one_port})

    async def told(self, uid: str) -> int:
        """How many changes the cluster's stream has taken."""
        bus = await Bus.connect(self.nats.url, name="test", tls=self.nats.tls(), nkey_seed_file=self.nats.seed_file())
        try:
            return sum(report.messages for report in await bus.report() if report.name == f"CLUSTER_{uid}")
        finally:
            await bus.close()


@pytest.fixture(scope="module")
async def hub(
    database: FreshDatabase, nats_server: NatsServer, hub_certificates: Certificates, free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Hub]:  # fmt: skip
    folder = tmp_path_factory.mktemp("hub")
    config = configuration(
        folder, database, nats_server, hub_certificates, free_ports, certificate_hours=LIFE_SECONDS / 3600,
    )  # fmt: skip
    async with running(config) as gateway:
        yield Hub(gateway, await gateway.nobody.sign_in("admin", PASSWORD), nats_server)
