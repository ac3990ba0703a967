"""A gateway whose msgbus is away and whose worker takes connections and never says a word."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from tests.contract.calls import examples
from tests.integration.errors.wire import standard
from tests.kit.data import FreshDatabase
from tests.kit.eventually import timescale
from tests.kit.gateway import PASSWORD, configuration, running
from tests.kit.nats import NatsServer
from tests.kit.rest import User

BEHIND = [e for e in examples() if e.name.split("Service.")[0] in ("Job", "Schedule", "Queue", "Inbox", "Announcement", "Message")]


@pytest.fixture(scope="module")
async def admin(
    database: FreshDatabase,
    nats_server: NatsServer,
    hub_certificates: Certificates,
    free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[User]:
    """The admin of that gateway."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the loop ends
            await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    worker = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = configuration(tmp_path_factory.mktemp("services"), database, nats_server, hub_certificates, free_ports, worker_address=worker)
    async with server, running(config) as gateway:
        yield await gateway.nobody.sign_in("admin", PASSWORD)


async def test_what_is_forwarded_says_that_it_cannot_be(admin: User) -> None:
    """UNAVAILABLE, or DEADLINE_EXCEEDED when the caller's time is up first; what is the gateway's own goes on."""
    seen = set()
    for example in BEHIND:
        async with asyncio.timeout(15 * timescale()):
            accept = {"Accept": "text/event-stream"} if example.streams else {}
            reply = await admin.call(example.method, "/" + example.path, example.body, Grpc_Timeout="500m", **accept)
        begun = example.streams and reply.status == 200  # let in first, as streams are
        body = json.loads(str(reply.body).rsplit("data: ", maxsplit=1)[-1]) if begun else reply.body
        error = standard(body["error"]["code"], reply.headers, body)
        seen.add(error["status"])
    assert seen & {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, seen
    assert not seen & {"INTERNAL", "UNKNOWN"}, seen
    assert (await admin.call("GET", "/tenants")).status == 200
