"""A gateway of one's own: the real one, on a real PostgreSQL and a real NATS, without the services that it forwards to."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import REGISTRY

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from libs import rpc
from libs.run import Life
from services.gateway.app import start
from services.gateway.config import Config
from tests.kit.data import FreshDatabase
from tests.kit.nats import NatsServer
from tests.kit.rest import User, nobody

PASSWORD = "correct horse battery"
_LISTENERS = ("rest", "grpc", "internal", "enrolment", "tunnel", "gateway-metrics")


class Gateway:
    """A gateway and where it is."""

    def __init__(self, config: Config, life: Life, nobody_: User) -> None:
        self.config, self.life, self.nobody = config, life, nobody_

    def tls(self, name: str = "worker") -> rpc.Tls:
        """A hub service's certificate."""
        certificates = Certificates(self.config.ca_file.parent)
        return rpc.Tls(certificates.certificate(name), certificates.key(name), certificates.ca)

    def plain(self, address: str) -> grpc.aio.Channel:
        """A channel that shows no certificate."""
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self.config.ca_file.read_bytes()))


def configuration(
    folder: Path, database: FreshDatabase, nats_server: NatsServer, certificates: Certificates, ports: Ports, **settings: Any
) -> Config:
    """Its configuration, on free ports; `settings` replace fields of it."""
    (folder / "dsn").write_text(database.dsn)
    password = folder / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    at = {name: f"127.0.0.1:{ports.take(name)}" for name in _LISTENERS}
    config = Config(
        database_url_file=folder / "dsn",
        master_key_file=certificates.master_key,
        nats_url=nats_server.url,
        nats_seed_file=nats_server.seed_file("gateway"),
        certificate_file=certificates.certificate("gateway"),
        key_file=certificates.key("gateway"),
        ca_file=certificates.ca,
        ca_key_file=certificates.key("ca"),
        admin_password_file=password,
        public_url=f"https://{at['rest']}",
        rest_address=at["rest"],
        grpc_address=at["grpc"],
        internal_address=at["internal"],
        enrolment_address=at["enrolment"],
        tunnel_address=at["tunnel"],
        metrics_address=at["gateway-metrics"],
        msgbus_address="127.0.0.1:1",
        worker_address="127.0.0.1:1",
    )
    return dataclasses.replace(config, **settings)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Gateway]:
    """Runs it in this process until the block ends."""
    life = Life()
    kept = set(REGISTRY._collector_to_names)
    try:
        await start(config, life)
        async with nobody(config.public_url, config.ca_file) as user:
            yield Gateway(config, life, user)
        assert life.failed is None
    finally:
        life.stopping.set()
        for step in life.on_drain:
            await step()
        await life.stack.aclose()
        for collector in set(REGISTRY._collector_to_names) - kept:  # a process has one gateway, this one may have several in turn
            REGISTRY.unregister(collector)
