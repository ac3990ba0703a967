"""The hub's services in this process behind relays that can be cut, one tenant, and an agent whose API server is a double."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import asyncpg
import pytest
import structlog
from cryptography import x509
from prometheus_client import CollectorRegistry

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from deploy.local.postgres import socket_folder
from kubegems.agent.v1 import inventory_service_pb2, preview_service_pb2
from libs import rpc
from libs.crypt.ca import SPIFFE, Authority
from libs.kube import Connection, KubeClient
from libs.rpc.call import Call
from libs.tunnel.tcp import client_tls
from services.agent.inventory_api import Inventory
from services.agent.link import AgentLink, by_grant, principal_of
from services.agent.proxy import Proxy
from services.gateway.fleet.enrolment_api import serial
from tests.contract.calls import Example
from tests.contract.edge import PASSWORD, Edge
from tests.contract.edge import edge as running
from tests.integration.link.rig import CLOCK, kubeconfig
from tests.integration.link.upstream import Upstream, upstream
from tests.kit import relay
from tests.kit.data import FreshDatabase
from tests.kit.nats import NatsServer
from tests.kit.relay import Relay

_STREAM_SECONDS = 1.5
_SERVED = (
    inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"],
    preview_service_pb2.DESCRIPTOR.services_by_name["PreviewService"],
)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """No lines in the log: without a set-up of the process each planted mistake would be drawn with all its frames, for a second."""
    before = structlog.get_config()
    structlog.configure(processors=[_dropped])
    yield
    structlog.configure(**before)


def _dropped(*_: Any) -> Any:
    raise structlog.DropEvent


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or the last event of a stream that ended in an error."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class World:
    """What runs, and what can be done to it."""

    edge: Edge
    postgres: Relay
    nats: Relay
    dsn: str
    tables: list[str]
    asked: list[str] = field(default_factory=list)

    async def execute(self, sql: str) -> None:
        """Changes the database behind the services' backs."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def ask(self, example: Example, **headers: str) -> Reply:
        """One request as the admin; of a stream its first line."""
        sent = {"Authorization": f"Bearer {self.edge.admin.token}"} | headers
        if example.body is not None:
            sent["Content-Type"] = "application/json"
        data = None if example.body is None else json.dumps(example.body)
        limit = aiohttp.ClientTimeout(total=_STREAM_SECONDS if example.streams else 60)
        user = self.edge.admin
        async with user.session.request(
            example.method, self.edge.url + example.path, data=data, headers=sent, ssl=user.tls, timeout=limit
        ) as answer:
            if example.streams and answer.status == 200:
                return Reply(200, dict(answer.headers), await _first_line(answer))
            raw = await answer.read()
            return Reply(answer.status, dict(answer.headers), json.loads(raw) if "json" in answer.content_type else raw)


async def _first_line(answer: aiohttp.ClientResponse) -> Any:
    with contextlib.suppress(TimeoutError):
        return json.loads(await answer.content.readline() or b"{}")
    return {}


@pytest.fixture(scope="module")
async def world(
    database: FreshDatabase, nats_server: NatsServer, hub_certificates: Certificates, free_ports: Ports, tmp_path_factory: Any
) -> AsyncIterator[World]:
    """Gateway, msgbus and worker, whose PostgreSQL and NATS are reached through relays; tenant acme with an environment."""
    folder = tmp_path_factory.mktemp("errors")
    parts = urlsplit(database.dsn)
    sockets, near = Path(parse_qs(parts.query)["host"][0]), socket_folder()
    dsn = database.dsn.replace(quote(str(sockets)), quote(str(near)))
    behind = urlsplit(nats_server.url)
    async with (
        relay.unix(sockets / ".s.PGSQL.5432", near / ".s.PGSQL.5432") as postgres,
        relay.tcp(str(behind.hostname), int(behind.port or 0)) as (nats, port),
        # a database that is not as it believes ends a process's task and so the process, which is started again
        running(
            folder, dsn, dataclasses.replace(nats_server, url=f"tls://127.0.0.1:{port}"), hub_certificates, free_ports, steady=False
        ) as edge,
    ):
        await _made(edge)
        connection = await asyncpg.connect(database.dsn)
        rows = await connection.fetch("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information)'")
        await connection.close()
        yield World(edge, postgres, nats, database.dsn, [row[0] for row in rows])


async def _made(edge: Edge) -> None:
    """What the document's examples speak of."""
    admin = edge.admin
    await admin.post("/users", {"userId": "dev", "initialPassword": PASSWORD})
    await admin.post("/clusters", {"clusterId": "local"})
    await admin.post("/tenants", {"tenantId": "acme"})
    await admin.put("/tenants/acme/quotas/local", {"hard": {"limits.cpu": "20"}})
    await admin.post("/tenants/acme/projects", {"projectId": "shop"})
    body = {"environmentId": "dev", "environment": {"cluster": "clusters/local", "quota": {"limits.cpu": "1"}}}
    await admin.post("/tenants/acme/projects/shop/environments", body)


class Preview:
    """The agent's servicer double: asks the API server as the user of the grant, or raises what a test says."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self.error: BaseException | None = None

    async def PreviewDesiredState(self, _request: Any, call: Call) -> preview_service_pb2.PreviewDesiredStateResponse:
        if self.error is not None:
            raise self.error
        await self._client.get_path("/version", impersonate=principal_of(call))
        return preview_service_pb2.PreviewDesiredStateResponse()


@dataclass
class Agent:
    """An agent of cluster `local`."""

    upstream: Upstream
    preview: Preview
    link: AgentLink


@pytest.fixture(scope="module")
async def agent(world: World, hub_ca: Authority, hub_certificates: Certificates, tmp_path_factory: Any) -> AsyncIterator[Agent]:
    """Joined and online."""
    folder = tmp_path_factory.mktemp("agent")
    uid = (await world.edge.admin.get("/clusters/local"))["uid"]
    pair = hub_ca.issue("local", now=datetime.now(UTC), lifetime=timedelta(days=1), dns=(), ips=(), uri=f"{SPIFFE}/cluster/{uid}")
    pair.write(folder, "local")
    await world.execute(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires)"
        f" VALUES ('{serial(x509.load_pem_x509_certificate(pair.certificate.encode()))}', '{uid}', now(), now() + interval '1 day')"
    )
    async with upstream() as up:
        connection = await Connection.from_kubeconfig(kubeconfig(folder / "kubeconfig", up.url))
        client, proxy = KubeClient(connection), Proxy(connection)
        preview = Preview(client)
        methods = [
            *rpc.methods(_SERVED[0], Inventory(client, principal_of=principal_of, clock=CLOCK)),
            *rpc.methods(_SERVED[1], preview),
        ]
        link = AgentLink(
            addresses=world.edge.tunnel, cluster_uid=uid, version="1", proxy=proxy,
            tls=lambda: client_tls(folder / "local.crt", folder / "local.key", hub_certificates.ca),
            pipeline=rpc.Pipeline(methods, peers=by_grant, registry=CollectorRegistry()),
        )  # fmt: skip
        task = asyncio.create_task(link.run(), name="agent")
        async with asyncio.timeout(20):
            await link.wait_connected()
        yield Agent(up, preview, link)
        task.cancel()
        await asyncio.wait([task])
        await proxy.close()
        await client.close()
