"""The two sides: the server under test, alone or with Envoy in front, and what a round cost it."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.envoy import load, proxy
from tests.bench.envoy.cases import Case
from tests.bench.envoy.server import Setting

_ROOT = Path(__file__).parents[3]
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Cost:
    """What a round cost: per thing, milliseconds of CPU; things per second; milliseconds of latency per request."""

    cpu: float
    backend_cpu: float
    rate: float
    p50: float
    p99: float


class Side:
    """A server, perhaps with Envoy in front."""

    def __init__(self, port: int, process: asyncio.subprocess.Process, envoy: proxy.Envoy | None) -> None:
        self.port, self._process, self._envoy = port, process, envoy

    async def cpu_seconds(self) -> tuple[float, float]:
        """Of all its processes, and of the server alone."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        own = float(await _told(self._process))
        return own + (self._envoy.cpu_seconds() if self._envoy is not None else 0.0), own

    async def round(self, case: Case, requests: list[bytes], tls: ssl.SSLContext | None) -> Cost:
        """One round."""
        before = await self.cpu_seconds()
        took = await load.run(self.port, requests, lanes=case.lanes, times=case.times, tls=tls)
        after = await self.cpu_seconds()
        things = case.lanes * case.times * case.units
        whole, own = ((b - a) * 1000 / things for a, b in zip(before, after, strict=True))
        p50, p99 = (took.latencies[min(len(took.latencies) - 1, len(took.latencies) * part // 100)] * 1000 for part in (50, 99))
        return Cost(whole, own, things / took.seconds, p50, p99)


@asynccontextmanager
async def server(setting: Setting) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """A server process and its port."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": setting.collector} if setting.collector else {}
    log = Path(setting.folder) / f"{setting.side}.log"
    async with _program("server", json.dumps(asdict(setting)), log=log, environment=environment) as process:
        try:
            yield int(await _told(process)), process
        finally:
            if setting.profile:
                await _leave(process)


@asynccontextmanager
async def collecting(folder: Path) -> AsyncIterator[tuple[int, Callable[[], Awaitable[int]]]]:
    """A collector of spans: its port, and what tells how many have come."""
    async with _program("collector", log=folder / "collector.log", environment={}) as process:

        async def asked() -> int:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            return int(await _told(process))

        yield int(await _told(process)), asked


@asynccontextmanager
async def _program(name: str, *arguments: str, log: Path, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of this package; it ends when its input ends, also when we are killed."""
    pipe, kept = asyncio.subprocess.PIPE, {n: value for n, value in os.environ.items() if not n.startswith("OTEL_")}
    paths = {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'gen'}"}
    command = [sys.executable, "-m", f"tests.bench.envoy.{name}", *arguments]
    with log.open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=told, env=kept | paths | environment, cwd=_ROOT
        )
    try:
        yield process
    except _Ended as error:
        raise RuntimeError(f"{name} has ended: {log.read_text()[-2000:]}") from error
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _leave(process: asyncio.subprocess.Process) -> None:
    """Lets a program end by itself."""
    assert process.stdin is not None
    process.stdin.close()
    await asyncio.wait_for(process.wait(), _SECONDS)


class _Ended(Exception):
    """A server's output is over."""


async def _told(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), _SECONDS)
    if not line:
        raise _Ended
    return json.loads(line)
