"""A gateway in a process of its own, that can be killed, drained and started again; several make one hub."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from deploy.local import health, services
from deploy.local import part as parts
from deploy.local.process import Process
from services.gateway.config import Config


class GatewayProcess:
    """One.

    Attributes:
        name: for people.
        config: what it is told.
        process: its process; None while it does not run.
    """

    def __init__(self, name: str, config: Config, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name, self.config, self.log = name, config, log
        self.process: Process | None = None
        facts = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
        ready = f"{config.public_url}/readyz"
        self._part = services.part("gateway", facts, log, lambda: health.until_answers(ready, config.ca_file), env)

    @property
    def running(self) -> bool:
        """Whether it does."""
        return self.process is not None and self.process.code is None

    async def start(self) -> None:
        """Starts it and waits until it serves."""
        if not self.running:
            self.process = await parts.start(self._part)

    async def kill(self) -> None:
        """Ends it without a word."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    def terminate(self) -> None:
        """Asks it to end."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGTERM)

    def pause(self) -> None:
        """Lets it stand still."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """Ends it."""
        if self.process is not None:
            self.resume() if self.running else None
            await self.process.stop()

    async def metric(self, name: str) -> float:
        """A figure of it, summed over its labels."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self.config.metrics_address}/metrics") as reply,
        ):
            text = await reply.text()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE))
