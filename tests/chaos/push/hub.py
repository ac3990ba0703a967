"""What is broken: a gateway, two replicas of msgbus, NATS and PostgreSQL, all real, and a cluster that the test makes up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import aiohttp
import asyncpg

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.errors import LocalError
from deploy.local.part import Part
from deploy.local.ports import Ports
from deploy.local.process import Process
from libs.bus import Bus, streams
from libs.clock import new_id
from libs.kube.resources import PODS
from tests.integration.push.cluster import UID, Cluster
from tests.integration.push.rig import msgbus_part
from tests.kit.data import DatabaseServer, FreshDatabase
from tests.kit.eventually import eventually
from tests.kit.gateway import PASSWORD, configuration
from tests.kit.nats import NatsServer, nats_server_part
from tests.kit.replicas import GatewayProcess
from tests.kit.rest import User, nobody

ACME, GLOBEX, BRIEF = "acme-shop-dev", "globex-shop-dev", "acme-shop-brief"
_HARD = {"limits.cpu": "20", "limits.memory": "40Gi", "requests.storage": "100Gi"}
T = TypeVar("T")


@dataclass
class Hub:
    """Everything.

    Attributes:
        replicas: of msgbus.
        cluster: whose changes are followed.
        nobody: a client that has not signed in.
        admin: one that has.
    """

    nats: NatsServer
    nats_process: Process
    postgres: DatabaseServer
    gateway: GatewayProcess
    replica_parts: list[Part]
    replicas: list[Process]
    bus: Bus
    cluster: Cluster
    nobody: User
    admin: User
    folder: Path

    async def insist(self, method: str, path: str, body: Any = None, *, missing: bool = False) -> None:
        """Asks until there is an answer; the token may have run out, a part may be away."""

        async def once() -> None:
            try:
                answer = await self.admin.call(method, path, body)
                if answer.status == 401:
                    self.admin = await self.nobody.sign_in("admin", PASSWORD)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise AssertionError(repr(error)) from error
            assert answer.status < 300 or (missing and answer.status == 404), answer.body

        await eventually(once, within=60, every=0.2, what=f"{method} {path}")

    async def sql(self, query: str, *args: Any) -> Any:
        """One value of the hub's database."""
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            return await connection.fetchval(query, *args)
        finally:
            await connection.close()

    async def kill_replica(self, index: int) -> None:
        """kill -9, and again there."""
        await _killed(self.replicas[index])

    async def start_replica(self, index: int) -> None:
        """Starts it again."""
        self.replicas[index] = await parts.start(self.replica_parts[index])

    async def kill_postgres(self) -> None:
        """kill -9, its children too."""
        await _killed(self.postgres.process)

    async def start_postgres(self) -> None:
        """Starts it again; its predecessor's children may need a moment to go."""

        async def once() -> Process:
            try:
                return await parts.start(self.postgres.part)
            except LocalError as error:
                raise AssertionError(str(error)) from error

        self.postgres.process = await eventually(once, within=30, every=0.2, what="PostgreSQL back")

    async def kill_nats(self) -> None:
        """kill -9."""
        await _killed(self.nats_process)

    async def start_nats(self) -> None:
        """Starts it again, on the store as it lies there."""
        self.nats_process = await parts.start(nats_server_part(self.nats))

    def keep_store(self) -> Path:
        """A copy of the broker's store as it lies on the disk now: what an unsynced tail falls back to."""
        kept = self.folder / f"store-{new_id().hex}"
        shutil.copytree(self.nats.server.folder / "store", kept, ignore_dangling_symlinks=True)
        return kept

    def restore(self, kept: Path) -> None:
        """Puts an earlier store in place of the one that a killed broker left."""
        shutil.rmtree(self.nats.server.folder / "store")
        kept.rename(self.nats.server.folder / "store")

    def stands(self) -> None:
        """Fails when a part has ended by itself."""
        processes: dict[str, Process | None] = {
            "NATS": self.nats_process,
            "PostgreSQL": self.postgres.process,
            "gateway": self.gateway.process,
        }
        processes |= {f"msgbus {index}": process for index, process in enumerate(self.replicas)}
        ended = [name for name, process in processes.items() if process is None or process.code is not None]
        assert not ended, f"ended by themselves: {ended}"

    async def whole(self) -> None:
        """Starts what does not run."""
        if self.postgres.process.code is not None:
            await self.start_postgres()
        if self.nats_process.code is not None:
            await self.start_nats()
        await self.gateway.start()
        for index, process in enumerate(self.replicas):
            if process.code is not None:
                await self.start_replica(index)
        if not self.cluster.observing:  # the chaos ended in the middle of its agent's death
            await self.cluster.kill()
            self.cluster.start()
            await self.cluster.observe(PODS)


async def _killed(process: Process) -> None:
    process.kill()
    await process.wait()


@contextlib.contextmanager
def frozen(*processes: Process) -> Any:
    """Lets processes stand still for the length of a block: what they have to say comes late."""
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def hub(folder: Path, certificates: Certificates, ports: Ports, postgres: DatabaseServer) -> AsyncIterator[Hub]:
    """Runs it."""
    async with contextlib.AsyncExitStack() as stack:
        nats = NatsServer.create(folder, certificates, ports.take("chaos-nats"))
        await nats_server_part(nats).prepare()
        nats_process = await parts.start(nats_server_part(nats))
        addresses = [ports.take(f"chaos-msgbus-{i}") for i in range(2)]
        config = configuration(
            folder, FreshDatabase(postgres.dsn, "kubegems"), nats, certificates, ports,
            msgbus_address=",".join(f"127.0.0.1:{port}" for port in addresses),
        )  # fmt: skip
        gateway = GatewayProcess("gateway", config, folder / "gateway.log")
        await gateway.start()
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("INSERT INTO fleet.clusters (uid, name, joined) VALUES ($1, 'local', true)", UUID(UID))
        await connection.execute("INSERT INTO fleet.desired (cluster_uid) VALUES ($1)", UUID(UID))
        await connection.close()
        bus = await Bus.connect(nats.url, name="gateway", tls=nats.tls(), nkey_seed_file=nats.seed_file())
        stack.push_async_callback(bus.close)
        await bus.ensure_stream(streams.cluster(UID))
        made = [
            msgbus_part(folder, certificates, nats, i, port, ports.take(f"chaos-metrics-{i}"), config.internal_address)
            for i, port in enumerate(addresses)
        ]
        replicas = [await parts.start(part) for part in made]
        tasks: list[asyncio.Task[None]] = []

        def spawn(name: str, work: Any) -> asyncio.Task[None]:
            tasks.append(asyncio.create_task(work, name=name))
            return tasks[-1]

        anyone = await stack.enter_async_context(nobody(config.public_url, config.ca_file))
        admin = await anyone.sign_in("admin", PASSWORD)
        built = Hub(nats, nats_process, postgres, gateway, made, replicas, bus, Cluster(bus, spawn), anyone, admin, folder)
        try:
            await _world(admin)
            await built.cluster.observe(PODS)
            yield built
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await gateway.stop()
            for running in (*built.replicas, built.nats_process):
                await running.stop()


async def _world(admin: User) -> None:
    """`acme` with `dev`, `globex` with `eve`; an environment of acme's that comes and goes."""
    for user in ("dev", "eve"):
        await admin.post("/users", {"userId": user, "user": {}, "initialPassword": PASSWORD})
    for tenant, user in (("acme", "dev"), ("globex", "eve")):
        await admin.post("/tenants", {"tenantId": tenant, "tenant": {}})
        await admin.put(f"/tenants/{tenant}/quotas/local", {"hard": _HARD})
        await admin.post(f"/tenants/{tenant}/projects", {"projectId": "shop", "project": {}})
        for name in ("dev", "brief") if tenant == "acme" else ("dev",):
            environment = {"cluster": "clusters/local", "quota": {"limits.cpu": "1"}}
            await admin.post(f"/tenants/{tenant}/projects/shop/environments", {"environmentId": name, "environment": environment})
        await admin.put(f"/tenants/{tenant}/projects/shop/environments/dev/members/{user}", {"role": "OPERATOR"})


async def insist(work: Callable[[], Awaitable[T]]) -> T:
    """What works once PostgreSQL is there."""

    async def once() -> tuple[T]:
        try:
            return (await work(),)
        except (OSError, asyncpg.PostgresError) as error:
            raise AssertionError(repr(error)) from error

    (found,) = await eventually(once, within=30)
    return found  # type: ignore[no-any-return] # read from JSON
