"""Floods of one address that never become a call: they draw on the address all the same."""

from __future__ import annotations

import pytest

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from tests.kit.data import FreshDatabase
from tests.kit.gateway import configuration, running
from tests.kit.nats import NatsServer
from tests.kit.rest import Answer

_PER_SECOND = 3


async def test_unknown_paths_options_and_sockets_draw_on_the_address(
    database: FreshDatabase,
    nats_server: NatsServer,
    hub_certificates: Certificates,
    free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each kind is answered until the address has used up its calls, then refused with 429 and when to come back."""
    folder = tmp_path_factory.mktemp("addresses")
    config = configuration(folder, database, nats_server, hub_certificates, free_ports, reads_per_address=_PER_SECOND)
    async with running(config) as gateway:
        for method, path in (("GET", "//api/v1/nowhere"), ("OPTIONS", "/tenants"), ("PUT", "/tenants"), ("GET", "//ws/messages")):
            seen: list[Answer] = []
            while not seen or seen[-1].status != 429:
                seen.append(await gateway.nobody.call(method, path))
                assert len(seen) < 50 * _PER_SECOND, "it is answered for ever"
            assert (seen[-1].reason, int(seen[-1].headers["Retry-After"]) > 0) == ("RATE_LIMITED", True), (method, path)
            assert len(seen[-1].headers["kubegems-request-id"]) == 32
