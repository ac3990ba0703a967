"""NATS for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.local.certificates import Certificates
from deploy.local.nats import Nats
from deploy.local.part import Part
from deploy.local.process import Process
from libs.bus.server import Keys


@dataclass(slots=True)
class NatsServer:
    """The run's NATS.

    Attributes:
        url: where it serves.
        certificates: `.certificate("gateway")`, `.key("gateway")`, `.ca`: what a hub service presents.
        process: its process; None before it runs.

    `.keys` and `.seed_file("gateway")` are the hub services' nkeys, `libs.bus.server.Keys`.
    """

    url: str
    certificates: Certificates
    server: Nats
    process: Process | None = None

    @classmethod
    def create(cls, folder: Path, certificates: Certificates, port: int) -> NatsServer:
        """A server that is not yet running."""
        server = Nats(folder / "nats", folder / "log/nats.log", certificates, folder / "nats-keys", port)
        return cls(server.url, certificates, server)

    @property
    def keys(self) -> Keys:
        """The nkeys that the configuration names."""
        return self.server.keys

    def seed_file(self, service: str = "gateway") -> Path:
        """The nkey seed of a hub service."""
        return self.keys.seed_file(service)

    def tls(self, service: str = "gateway") -> tuple[Path, Path, Path]:
        """(certificate, key, CA) of a hub service, as `Bus.connect` takes it."""
        return self.certificates.certificate(service), self.certificates.key(service), self.certificates.ca


def nats_server_part(server: NatsServer) -> Part:
    """How to run it."""
    return server.server.part()
