"""The hub's services in this process, on the kit's PostgreSQL and NATS, without any cluster; thrown away afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import hubparts
from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from libs.run import Life
from services.gateway import app as gateway
from services.gateway.config import Config as GatewayConfig
from services.msgbus import app as msgbus
from services.msgbus.config import Config as MsgbusConfig
from services.worker import app as worker
from services.worker.config import Config as WorkerConfig
from tests.kit.nats import NatsServer
from tests.kit.rest import User, nobody

PASSWORD = "correct horse battery"
_PORTS = ("rest", "grpc", "internal", "enrolment", "tunnel", "gateway-metrics", "msgbus", "msgbus-metrics", "worker", "worker-metrics")
Start = Callable[[Any, Life], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Edge:
    """Running services.

    Attributes:
        url: of REST.
        grpc: `host:port` of public gRPC.
        ca: the file that proves both.
        tunnel: `host:port` for agents.
        nobody: a client that has not signed in.
        admin: the platform's first admin.
    """

    url: str
    grpc: str
    ca: Path
    tunnel: str
    nobody: User
    admin: User


@contextlib.asynccontextmanager
async def edge(
    folder: Path, dsn: str, nats: NatsServer, certificates: Certificates, ports: Ports, *, steady: bool = True
) -> AsyncIterator[Edge]:  # fmt: skip
    """Runs gateway, msgbus and worker for the length of a block; `steady`: none of them may have wanted to be restarted in it."""
    (folder / "dsn").write_text(dsn)
    password = folder / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    at = {name: f"127.0.0.1:{ports.take(name)}" for name in _PORTS}
    async with contextlib.AsyncExitStack() as stack:
        for start, config in _services(folder, at, nats, certificates):
            await stack.enter_async_context(_running(start, config, steady=steady))
        url = f"https://{at['rest']}"
        stranger = await stack.enter_async_context(nobody(url, certificates.ca))
        yield Edge(url, at["grpc"], certificates.ca, at["tunnel"], stranger, await stranger.sign_in("admin", PASSWORD))


def _services(folder: Path, at: dict[str, str], nats: NatsServer, certificates: Certificates) -> list[tuple[Start, Any]]:
    def common(name: str) -> dict[str, Any]:
        return {
            "database_url_file": folder / "dsn",
            "nats_url": nats.url,
            "nats_seed_file": nats.seed_file(name),
            "ca_file": certificates.ca,
            "certificate_file": certificates.certificate(name),
            "key_file": certificates.key(name),
            "metrics_address": at[f"{name}-metrics"],
        }

    key = certificates.master_key
    hub = GatewayConfig(
        **common("gateway"), master_key_file=key, ca_key_file=certificates.key("ca"), admin_password_file=folder / "password",
        public_url=f"https://{at['rest']}", rest_address=at["rest"], grpc_address=at["grpc"], internal_address=at["internal"],
        enrolment_address=at["enrolment"], tunnel_address=at["tunnel"], msgbus_address=at["msgbus"], worker_address=at["worker"],
        viewer_folder=hubparts.VIEWER if hubparts.VIEWER.is_dir() else None,
    )  # fmt: skip
    internal = at["internal"]
    bus = MsgbusConfig(**common("msgbus"), resume_key_file=key, gateway_address=internal, grpc_address=at["msgbus"])
    jobs = WorkerConfig(**common("worker"), page_key_file=key, gateway_address=internal, grpc_address=at["worker"])
    return [(gateway.start, hub), (msgbus.start, bus), (worker.start, jobs)]


@contextlib.asynccontextmanager
async def _running(start: Start, config: Any, *, steady: bool) -> AsyncIterator[None]:
    life = Life()
    try:
        await start(config, life)
        yield
        assert not steady or life.failed is None, life.failed
    finally:
        life.stopping.set()
        for step in life.on_drain:
            await step()
        await life.stack.aclose()
