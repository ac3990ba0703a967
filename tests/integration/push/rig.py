"""Two msgbus processes behind one channel, with a real NATS that can lose its tail, and doubles for gateway and cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_DNS, uuid4, uuid5

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.part import Part, until_open
from deploy.local.ports import Ports
from deploy.local.process import Command, Process
from kubegems.messages.v1 import announcement_service_pb2, event_pb2, inbox_service_pb2, message_service_pb2
from libs import rpc
from libs.bus import Bus, streams
from libs.clock import SystemClock, new_id
from libs.crypt.signing import SigningKey
from libs.kube.resources import PODS
from libs.rpc.batches import each
from libs.rpc.call import Call, Caller, Kind, Method
from libs.rpc.forward import forward
from tests.integration.push.cluster import UID, Cluster
from tests.integration.push.gateway import Hub, Rights, serve
from tests.integration.push.viewer import Viewer
from tests.kit.nats import NatsServer, nats_server_part


@dataclass
class Rig:
    """Everything around two replicas."""

    folder: Path
    certificates: Certificates
    nats: NatsServer
    hub: Hub
    bus: Bus
    cluster: Cluster
    channel: rpc.Channel
    methods: dict[str, Method]
    direct: list[dict[str, Method]]
    replicas: list[Process | None]
    parts: list[Part]
    nats_process: Process
    ports: list[int]

    def viewer(self, user: str, **request: Any) -> Viewer:
        """A subscriber that is not yet running."""
        return Viewer(self, user, request)

    @contextlib.asynccontextmanager
    async def viewing(self, *viewers: Viewer) -> AsyncIterator[None]:
        """Runs subscribers for the length of a block."""
        tasks = [asyncio.create_task(v.run(), name=f"viewer {v.user}") for v in viewers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), ended

    async def subscribe(
        self, user: str, asked: message_service_pb2.SubscribeRequest, at: int | None = None
    ) -> AsyncGenerator[event_pb2.Event, None]:
        """A stream through the channel to whichever replica, or to the one `at` a place."""
        method = (self.methods if at is None else self.direct[at])["Subscribe"]
        async with aclosing(method.handler(asked, self.call(method, user))) as items:  # type: ignore[type-var] # unary or stream, as the method says
            async for item in items:  # type: ignore[union-attr] # unary or stream, as the method says
                for raw in each(item):
                    yield event_pb2.Event.FromString(raw)

    async def ask(self, rpc_name: str, request: Any, user: str = "dev") -> Any:
        """A unary call through the channel."""
        method = self.methods[rpc_name]
        raw = await method.handler(request, self.call(method, user))  # type: ignore[misc] # unary or stream, as the method says
        return method.response_class.FromString(raw)

    def call(self, method: Method, user: str) -> Call:
        """A call of a signed-in user."""
        return Call(
            method, caller=Caller(Kind.USER, user, str(uuid5(NAMESPACE_DNS, user)), f"session-{user}", Rights()), request_id=uuid4().hex
        )

    async def kill_replica(self, index: int) -> None:
        """kill -9."""
        process = self.replicas[index]
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        self.replicas[index] = None

    async def start_replica(self, index: int) -> None:
        """Starts it (again)."""
        self.replicas[index] = await parts.start(self.parts[index])

    async def kill_nats(self) -> None:
        """kill -9."""
        os.kill(self.nats_process.pid, signal.SIGKILL)
        await self.nats_process.wait()

    async def start_nats(self) -> None:
        """Starts it (again), on the store as it lies there."""
        self.nats_process = await parts.start(nats_server_part(self.nats))

    def keep_store(self) -> Path:
        """A copy of the broker's store as it lies on the disk now: what an unsynced tail falls back to."""
        kept = self.folder / f"store-{new_id().hex}"
        shutil.copytree(self.nats.server.folder / "store", kept, ignore_dangling_symlinks=True)
        return kept

    def restore(self, kept: Path) -> None:
        """Puts an earlier store in place of the one that a killed broker left."""
        shutil.rmtree(self.nats.server.folder / "store")
        shutil.copytree(kept, self.nats.server.folder / "store")


@contextlib.asynccontextmanager
async def rig(folder: Path, certificates: Certificates, ports: Ports, dsn: str) -> AsyncIterator[Rig]:
    """Builds all of it."""
    async with contextlib.AsyncExitStack() as stack:
        tasks: set[asyncio.Task[None]] = set()

        def spawn(name: str, work: Any) -> asyncio.Task[None]:
            task = asyncio.create_task(work, name=name)
            tasks.add(task)
            return task

        nats = NatsServer.create(folder, certificates, ports.take("push-nats"))
        await nats_server_part(nats).prepare()
        process = await parts.start(nats_server_part(nats))
        bus = await Bus.connect(nats.url, name="gateway", tls=nats.tls(), nkey_seed_file=nats.seed_file())
        stack.push_async_callback(bus.close)
        for stream in (*streams.HUB, streams.cluster(UID)):
            await bus.ensure_stream(stream)
        tls = rpc.Tls(*nats.tls())
        hub = Hub(SigningKey.generate("k1"))
        gateway = await serve(hub, tls)
        stack.push_async_callback(gateway[0].drain, 0.1)
        cluster = Cluster(bus, spawn)
        addresses = [ports.take(f"push-msgbus-{i}") for i in range(2)]
        (folder / "dsn").write_text(dsn)
        made = [msgbus_part(folder, certificates, nats, i, addresses[i], ports.take(f"push-metrics-{i}"), gateway[1]) for i in range(2)]
        everywhere = [f"127.0.0.1:{port}" for port in addresses]
        channel, *single = [rpc.Channel(target, "msgbus", tls) for target in (",".join(everywhere), *everywhere)]
        for found in (channel, *single):
            stack.push_async_callback(found.close)
        files = (message_service_pb2, inbox_service_pb2, announcement_service_pb2)
        services = [s for file in files for s in file.DESCRIPTOR.services_by_name.values()]
        served, *direct = [
            {m.descriptor.name: m for s in services for m in forward(s, c, lambda: hub.key, SystemClock())} for c in (channel, *single)
        ]
        built = Rig(folder, certificates, nats, hub, bus, cluster, channel, served, direct, [None, None], made, process, addresses)
        try:
            await cluster.observe(PODS)
            await asyncio.gather(*(built.start_replica(i) for i in range(2)))
            yield built
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for running in (*built.replicas, built.nats_process):
                if running is not None:
                    await running.stop()


def msgbus_part(  # noqa: PLR0917 -- what a process is told
    folder: Path, certificates: Certificates, nats: NatsServer, index: int, port: int, metrics: int, gateway: str
) -> Part:
    """One msgbus process."""
    settings = {
        "DATABASE_URL_FILE": folder / "dsn",
        "RESUME_KEY_FILE": certificates.master_key,
        "NATS_URL": nats.url,
        "NATS_SEED_FILE": nats.seed_file("msgbus"),
        "CERTIFICATE_FILE": certificates.certificate("msgbus"),
        "KEY_FILE": certificates.key("msgbus"),
        "CA_FILE": certificates.ca,
        "GATEWAY_ADDRESS": gateway,
        "GRPC_ADDRESS": f"127.0.0.1:{port}",
        "METRICS_ADDRESS": f"127.0.0.1:{metrics}",
        "STREAMS_PER_USER": "20",
    }
    env = os.environ | {f"KUBEGEMS_MSGBUS_{name}": str(value) for name, value in settings.items()}

    def command() -> Command:
        return Command((sys.executable, "-m", "services.msgbus"), folder / f"msgbus-{index}.log", env)

    return Part(f"msgbus {index}", command, lambda: until_open(port))
