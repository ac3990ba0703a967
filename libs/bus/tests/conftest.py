"""A broker with the rendered configuration, that tests may stop and start."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local import part as parts
from deploy.local.part import Part, until_open
from deploy.local.process import Command
from deploy.local.programs import find
from libs.bus import Bus
from libs.bus.server import Keys, ServerConfig, render


@dataclasses.dataclass
class Broker:
    """A nats-server of one's own."""

    folder: Path
    certificates: Any
    port: int
    keys: Keys
    running: Any = None

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    def tls(self, service: str) -> tuple[Path, Path, Path]:
        return self.certificates.certificate(service), self.certificates.key(service), self.certificates.ca

    async def start(self, *, guarded: bool = True) -> None:
        """Starts it, as we configure it or without any authorisation."""
        text = render(ServerConfig(self.port, self.folder / "store", self.tls("nats"), self.keys))
        if not guarded:
            text = text[: text.index("accounts {")]
        (self.folder / "nats.conf").write_text(text)

        def command() -> Command:
            return Command((find("nats-server"), "-c", str(self.folder / "nats.conf")), self.folder / "nats.log")

        self.running = parts.running(Part("nats", command, lambda: until_open(self.port)))
        await self.running.__aenter__()

    async def stop(self) -> None:
        if self.running is not None:
            running, self.running = self.running, None
            await running.__aexit__(None, None, None)

    async def bus(self, service: str = "gateway") -> Bus:
        return await Bus.connect(self.url, name=service, tls=self.tls(service), nkey_seed_file=self.keys.seed_file(service))


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory, hub_certificates: Any, free_ports: Any) -> AsyncIterator[Broker]:
    """A running broker for one test module."""
    folder = tmp_path_factory.mktemp("broker")
    found = Broker(folder, hub_certificates, free_ports.take(f"nats-{folder.name}"), Keys.ensure(folder / "keys"))
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[Bus]:
    """The gateway's bus."""
    found = await broker.bus()
    yield found
    await found.close()
