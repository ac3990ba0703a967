"""A gateway with tight bounds, a message bus that only keeps streams open, and raw connections to the REST edge."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from kubegems.messages.v1 import event_pb2, message_service_pb2
from libs import rpc
from libs.rpc.authorisation import granted
from libs.rpc.call import Call, Caller, Kind
from libs.rpc.server import MAX_METADATA
from libs.rpc.tests.doubles import completed
from tests.kit.data import FreshDatabase
from tests.kit.gateway import PASSWORD, Gateway, configuration, running
from tests.kit.nats import NatsServer
from tests.kit.rest import User

STREAMS_PER_CALLER = 100
CONNECTIONS = 1400


class Idle:
    """Streams of which nothing comes but the first event."""

    def __init__(self) -> None:
        self.open = 0

    async def Subscribe(self, _request: Any, _call: Call) -> AsyncIterator[event_pb2.Event]:
        self.open += 1
        try:
            yield event_pb2.Event(scope="here")
            await asyncio.Event().wait()
        finally:
            self.open -= 1


@dataclass(frozen=True, slots=True)
class Reply:
    """One raw answer: its status (0: closed without a word), headers and body."""

    status: int
    headers: bytes = b""
    body: Any = None

    @property
    def reason(self) -> str:
        """Reason of the error's ErrorInfo."""
        return str(self.body["error"]["details"][0]["reason"]) if isinstance(self.body, dict) and "error" in self.body else ""


@dataclass(slots=True)
class Edge:
    """The REST edge, and who is signed in there."""

    gateway: Gateway
    bus: Idle
    admin: User
    tls: ssl.SSLContext
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TLS connection."""
        host, _, port = self.gateway.config.rest_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=self.tls, server_hostname="127.0.0.1", limit=2**16)
        self.writers.append(writer)
        return reader, writer

    async def send(self, content: bytes, *, within: float = 10.0) -> Reply:
        """What comes back for raw bytes until the server closes, or its first answer is whole."""
        reader, writer = await self.open()
        try:
            async with asyncio.timeout(within):
                try:
                    writer.write(content)
                    await writer.drain()
                except ConnectionError:
                    pass
                return await self.read(reader)
        finally:
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> Reply:
        """One answer."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return Reply(0)
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        decoded = json.loads(body) if body and b"json" in head.lower() else body
        return Reply(int(head.split()[1]), head, decoded)

    def get(self, target: str | bytes = "/api/v1/tenants", *more: bytes, token: str | None = None) -> bytes:
        """The bytes of a GET as the admin, with further header lines."""
        raw = target if isinstance(target, bytes) else target.encode()
        bearer = (self.admin.token if token is None else token).encode()
        lines = [b"GET " + raw + b" HTTP/1.1", b"Host: 127.0.0.1", b"Authorization: Bearer " + bearer, *more]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def post(self, body: bytes, *more: bytes, path: str = "/api/v1/tenants", length: bool = True) -> bytes:
        """The bytes of a POST of JSON as the admin."""
        lines = [f"POST {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"Authorization: Bearer " + self.admin.token.encode()]
        lines += [b"Content-Type: application/json", *more]
        if length:
            lines.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    async def alive(self) -> None:
        """Whether the edge still answers, at once: the control of every attack."""
        async with asyncio.timeout(5):
            assert (await self.send(self.get())).status == 200


@pytest.fixture(scope="module")
async def edge(
    database: FreshDatabase,
    nats_server: NatsServer,
    hub_certificates: Certificates,
    free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Edge]:
    """A gateway whose connections and streams are bounded tighter than by default."""
    bus = Idle()

    async def anyone(call: Call) -> Caller:
        call.metadata.clear()
        return Caller(Kind.USER, "somebody")

    service = message_service_pb2.DESCRIPTOR.services_by_name["MessageService"]
    pipeline = rpc.Pipeline(
        rpc.methods(service, completed(service, bus)), authenticate=anyone, authorise=granted, registry=CollectorRegistry()
    )
    server = rpc.Server(pipeline, max_metadata=MAX_METADATA, per_connection=10_000)
    at = f"127.0.0.1:{free_ports.take('msgbus')}"
    tls = rpc.Tls(hub_certificates.certificate("msgbus"), hub_certificates.key("msgbus"), hub_certificates.ca)
    server.listen(at, tls, require_client=True)
    await server.start()
    config = configuration(
        tmp_path_factory.mktemp("abuse"), database, nats_server, hub_certificates, free_ports,
        msgbus_address=at, connections_per_address=CONNECTIONS, streams_per_caller=STREAMS_PER_CALLER,
        reads_per_address=100_000, cors_origins="https://console.example.com",
    )  # fmt: skip
    async with running(config) as gateway:
        admin = await gateway.nobody.sign_in("admin", PASSWORD)
        yield Edge(gateway, bus, admin, ssl.create_default_context(cafile=str(config.ca_file)))
    await server.drain(0.1)
