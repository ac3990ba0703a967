"""One address that opens too many connections, or floods what never becomes a call."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

import pytest

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from tests.kit.data import FreshDatabase
from tests.kit.eventually import eventually, timescale
from tests.kit.gateway import Gateway, configuration, running
from tests.kit.nats import NatsServer
from tests.kit.rest import Answer

_PER_SECOND = 3
_CONNECTIONS = 20


@pytest.fixture(scope="module")
async def gateway(
    database: FreshDatabase,
    nats_server: NatsServer,
    hub_certificates: Certificates,
    free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Gateway]:
    """A gateway that gives an address little."""
    config = configuration(
        tmp_path_factory.mktemp("addresses"), database, nats_server, hub_certificates, free_ports,
        reads_per_address=_PER_SECOND, connections_per_address=_CONNECTIONS,
    )  # fmt: skip
    async with running(config) as found:
        yield found


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "//api/v1/nowhere"), ("OPTIONS", "/tenants"), ("PUT", "/tenants"), ("GET", "//ws/messages")]
)
async def test_what_becomes_no_call_draws_on_the_address(gateway: Gateway, method: str, path: str) -> None:
    """Unknown paths, OPTIONS, sockets: answered until the address has used up its calls, then 429 and when to come back."""
    seen: list[Answer] = []
    while not seen or seen[-1].status != 429:
        seen.append(await gateway.nobody.call(method, path))
        assert len(seen) < 50 * _PER_SECOND, "it is answered for ever"
    assert (seen[-1].reason, int(seen[-1].headers["Retry-After"]) > 0) == ("RATE_LIMITED", True)
    assert len(seen[-1].headers["kubegems-request-id"]) == 32


async def test_connections_of_one_address_are_bounded(gateway: Gateway) -> None:
    """Half of them never end their handshake and count all the same; beyond the bound the edge says so, and takes others when they go."""
    host, _, port = gateway.config.rest_address.rpartition(":")
    tls = ssl.create_default_context(cafile=str(gateway.config.ca_file))
    shaking = [await asyncio.open_connection(host, int(port)) for _ in range(_CONNECTIONS // 2)]
    whole = [await asyncio.open_connection(host, int(port), ssl=tls, server_hostname="127.0.0.1") for _ in range(_CONNECTIONS)]
    try:
        async with asyncio.timeout(5 * timescale()):
            said = await whole[-1][0].read()
        assert said.startswith(b"HTTP/1.1 429 ")
        assert b"TOO_MANY_CONNECTIONS" in said
        assert b"kubegems-request-id: " in said
    finally:
        for _, writer in (*shaking, *whole):
            writer.transport.abort()

    async def taken() -> bool:
        return (await gateway.nobody.call("GET", "//healthz")).status == 200

    await eventually(taken, within=10)
