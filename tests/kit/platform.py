"""The whole platform for e2e tests: the starter's own code, with its own state and free ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import build
from deploy.local.collector import Jaeger
from deploy.local.layout import Layout
from deploy.local.options import Options
from deploy.local.part import running
from deploy.local.ports import Ports
from deploy.local.stack import Stack
from tests.kit import cluster as clusters
from tests.kit.eventually import timescale

_START_SECONDS = 120.0  # after everything is built


@dataclass(slots=True)
class Platform:
    """A running platform.

    Attributes:
        layout: its folders; `.env` is the file for the walk-through, `.logs` holds each part's log.
        stack: what keeps it running.
        said: the starter's lines.
    """

    layout: Layout
    stack: Stack
    said: list[str]

    @property
    def endpoints(self) -> dict[str, Any]:
        """The content of `endpoints.json`."""
        return dict(json.loads(self.layout.endpoints.read_text()))

    def pid(self, part: str) -> int:
        """The pid of a part, such as `gateway`, `postgresql`, `nats`, `agent`."""
        pid = self.stack.supervisor.kept[part].pid
        assert pid, f"{part} does not run"
        return pid

    def kill(self, part: str) -> int:
        """Ends a part by SIGKILL; it comes back by itself."""
        pid = self.pid(part)
        os.kill(pid, signal.SIGKILL)
        return pid

    async def back(self, part: str, *, other_than: int = 0, within: float = 60.0) -> int:
        """The pid of a part once it serves (again)."""
        async with asyncio.timeout(within * timescale()):
            while True:
                kept = self.stack.supervisor.kept[part]
                if kept.state == "ready" and kept.pid and kept.pid != other_than:
                    return kept.pid
                await asyncio.sleep(0.05)

    def log(self, part: str) -> str:
        """What a part has logged."""
        return (self.layout.logs / f"{part}.log").read_text(errors="replace")


@contextlib.asynccontextmanager
async def platform(folder: Path, *, jaeger: bool = True, ports: Mapping[str, int] | None = None) -> AsyncIterator[Platform]:
    """Runs a platform for the length of a block; everything is built before the clock starts. `ports` must be these."""
    await clusters.programs()
    if jaeger:
        await build.binary(build.JAEGER, print)
    layout = Layout(folder)
    layout.create()
    layout.lock()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        print(line)

    stack = Stack(layout, Options(jaeger=jaeger, documented_ports=False, durable=False, ports=ports or {}), say)
    try:
        async with asyncio.timeout(_START_SECONDS * timescale()):
            await _first(stack.up(), stack.failure())
        yield Platform(layout, stack, said)
    finally:
        await stack.stop()
        layout.remove()


async def _first(up: Any, failure: Any) -> None:
    """Waits until it is up; raises what it failed with."""
    tasks = {asyncio.ensure_future(up), asyncio.ensure_future(failure)}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.result()
            if error is not None:
                raise error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def collector(folder: Path, ports: Ports) -> AsyncIterator[Jaeger]:
    """Runs a Jaeger for the length of a block."""
    await clusters.programs()  # where these cannot be built, neither can it
    jaeger = Jaeger(folder / "jaeger", folder / "log/jaeger.log", ports)
    jaeger.binary = await build.binary(build.JAEGER, print)
    async with running(jaeger.part()):
        yield jaeger
