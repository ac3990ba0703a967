"""Simulated agents: the real link of an agent, many in one process, each with a certificate of its own and no cluster behind it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import orjson
from cryptography import x509
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import inventory_service_pb2
from libs import rpc
from libs.clock import SystemClock
from libs.crypt.ca import SPIFFE, Authority
from libs.kube import Principal
from libs.rpc.call import Call
from libs.tunnel import Reset, Stream
from libs.tunnel.kubernetes import Request
from libs.tunnel.tcp import client_tls
from services.agent.link import AgentLink, by_grant, principal_of
from services.agent.proxy import Proxy
from services.agent.reply import head, send_head

VERSION = "0.1.0"
_INVENTORY = inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"]
_JSON = (("content-type", b"application/json"),)


class SimulatedApi(Proxy):
    """Stands in for an API server: says whose cluster it is, watches that tick when told, upgrades that echo.

    Attributes:
        uid: the cluster's.
        tick: each open watch gets an event when it is set, and what is put there next replaces it.
        watches: how many are open.
        release: what `/slow` waits for, and `/torn` in the middle of its body, which breaks off then.
    """

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.tick = asyncio.Event()
        self.release = asyncio.Event()
        self.watches = self.slow = 0

    async def close(self) -> None:
        """Nothing is open."""

    def event(self) -> None:
        """One more event for every watch."""
        tick, self.tick = self.tick, asyncio.Event()
        tick.set()

    async def serve(self, stream: Stream, request: Request, *, has_body: bool, principal: Principal) -> None:
        """Answers a request on its stream."""
        if request.upgrade:
            await self._echo(stream, request.upgrade)
        elif "watch=" in request.query:
            await self._watch(stream)
        elif request.path.endswith("/torn"):
            await send_head(stream, head(200, _JSON))
            await stream.write(b'{"half": ')
            await self.release.wait()
            stream.reset(Reset.BROKEN, "the API server broke off")
        else:
            if request.path.endswith("/slow"):
                self.slow += 1
                await self.release.wait()
            body = b"".join([chunk async for chunk in _read(stream)]) if has_body else b""
            told = {"cluster": self.uid, "user": principal.user, "path": request.path, "body": body.decode()}
            await send_head(stream, head(200, _JSON))
            await stream.write(orjson.dumps(told))
            stream.end()

    async def _watch(self, stream: Stream) -> None:
        self.watches += 1
        try:
            await send_head(stream, head(200, _JSON))
            number = 0
            while True:
                await stream.write(orjson.dumps({"type": "ADDED", "object": {"cluster": self.uid, "number": number}}) + b"\n")
                number += 1
                await self.tick.wait()
        finally:
            self.watches -= 1

    async def _echo(self, stream: Stream, protocol: str) -> None:
        await send_head(stream, head(101, (("upgrade", protocol.encode()), ("connection", b"Upgrade"))))
        async for chunk in _read(stream):
            await stream.write(chunk)
        stream.end()


async def _read(stream: Stream) -> AsyncIterator[bytes]:
    while chunk := await stream.read():
        yield chunk


class _Inventory:
    """Tells whose cluster it is, and who asks."""

    def __init__(self, uid: str) -> None:
        self._uid = uid

    async def GetInventory(self, request: object, call: Call) -> inventory_service_pb2.GetInventoryResponse:
        """The uid in the version field."""
        del request
        reply = inventory_service_pb2.GetInventoryResponse()
        reply.inventory.kubernetes_version = f"{self._uid} {principal_of(call).user}"
        return reply


class SimulatedAgent:
    """One.

    Attributes:
        uid, name: of its cluster.
        api: its cluster.
        link: its tunnel.
    """

    def __init__(self, uid: str, name: str, certificate: Path, ca_file: Path) -> None:
        self.uid, self.name = uid, name
        self.api = SimulatedApi(uid)
        self._files = (certificate, ca_file)
        self._pipeline = rpc.Pipeline(rpc.methods(_INVENTORY, _Inventory(uid)), peers=by_grant, registry=CollectorRegistry())
        self._task: asyncio.Task[None] | None = None

    def tls(self) -> ssl.SSLContext:
        """With its certificate."""
        certificate, ca_file = self._files
        return client_tls(certificate, certificate, ca_file)

    def start(self, addresses: str, *, first: str = "") -> None:
        """Dials, one of them first when it is named, and keeps its tunnel."""
        self.link = AgentLink(
            addresses=addresses, tls=self.tls, cluster_uid=self.uid, version=VERSION, pipeline=self._pipeline, proxy=self.api
        )  # fmt: skip
        if first:
            self.link._hubs._tried = set(addresses.split(",")) - {first}
        self._task = asyncio.create_task(self.link.run(), name=f"agent {self.name}")

    async def stop(self) -> None:
        """Lets its tunnel go."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])


async def joined(count: int, *, dsn: str, authority: Authority, folder: Path, ca_file: Path, prefix: str = "sim") -> list[SimulatedAgent]:
    """Clusters that have joined, with their agents, which do not run yet.

    Args:
        count: how many.
        dsn: the hub's database, migrated.
        authority: the hub's.
        folder: for their certificates.
        ca_file: the hub's CA.
        prefix: of the clusters' names.
    """
    now = SystemClock().now()
    agents, rows = [], []
    for number in range(count):
        uid, name = str(uuid4()), f"{prefix}-{number:03d}"
        pair = authority.issue(f"cluster {uid}", now=now, lifetime=timedelta(days=1), uri=f"{SPIFFE}/cluster/{uid}")
        file = folder / f"{name}.pem"
        file.touch(0o600)
        file.write_text(pair.certificate + "\n" + pair.key)
        found = x509.load_pem_x509_certificate(pair.certificate.encode())
        rows.append((uid, name, f"{found.serial_number:x}", now, found.not_valid_after_utc))
        agents.append(SimulatedAgent(uid, name, file, ca_file))
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.executemany("INSERT INTO fleet.clusters (uid, name, joined) VALUES ($1, $2, true)", [r[:2] for r in rows])
            await connection.executemany("INSERT INTO fleet.desired (cluster_uid) VALUES ($1)", [r[:1] for r in rows])
            await connection.executemany(
                "INSERT INTO fleet.certificates (cluster_uid, serial, issued, expires) VALUES ($1, $2, $3, $4)",
                [(r[0], *r[2:]) for r in rows],
            )
    finally:
        await connection.close()
    return agents


@asynccontextmanager
async def running(agents: Iterable[SimulatedAgent], addresses: str) -> AsyncIterator[None]:
    """Runs agents until the block ends."""
    found = list(agents)
    for agent in found:
        agent.start(addresses)
    try:
        yield
    finally:
        await asyncio.gather(*(agent.stop() for agent in found))
