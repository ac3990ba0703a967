"""The tunnel against an ordinary mTLS grpc.aio call to the agent, and a small call beside downloads on a slow link.

CPU is that of both ends together, in pairs of interleaved rounds: a bare call with one and with 32 in flight, the whole call (grant,
deadline, trace, the agent's pipeline) against the ordinary call with a deadline (`granted`) and against gRPC with the same pipeline
(`pipeline`), a body of 21 MB, events of 4 KB at full speed.

`python -m tests.bench tunnel` prints one JSON line per bar.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import uvloop

from kubegems.agent.v1 import inventory_service_pb2
from libs import log
from libs.crypt.ca import SPIFFE, Authority
from libs.log import trace
from libs.tunnel import Mux, Reset, Stream
from libs.tunnel.tcp import Connection, listen, server_tls
from services.gateway.link.links import Links
from tests.bench.tunnel_rig.agent import CHUNK, INVENTORY
from tests.integration.link.rig import DEV, Rig, kubeconfig

ROUNDS = 5
UID = "11111111-1111-4111-8111-111111111111"
_HERE = Path(__file__).parent / "tunnel_rig"
_BODY, _EVENTS = 21 * 1024 * 1024 // len(CHUNK), 10_000
_GET_INVENTORY = INVENTORY.methods_by_name["GetInventory"]
_PAYLOAD = b"p" * 100
Call = Callable[[], Awaitable[None]]


class Far:
    """A process of the rig."""

    def __init__(self, process: asyncio.subprocess.Process, ports: list[int]) -> None:
        self._process, self.ports = process, ports

    @classmethod
    @asynccontextmanager
    async def started(cls, program: str, *arguments: object) -> AsyncIterator[Far]:
        """For the length of a block; it tells its ports first."""
        pipe = asyncio.subprocess.PIPE
        words = [str(argument) for argument in arguments]
        process = await asyncio.create_subprocess_exec(sys.executable, str(_HERE / program), *words, stdin=pipe, stdout=pipe)
        try:
            yield cls(process, await cls._told(process))
        finally:
            process.kill()
            await process.wait()

    async def cpu_seconds(self) -> float:
        """Since its start."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return float(await self._told(self._process))

    @staticmethod
    async def _told(process: asyncio.subprocess.Process) -> Any:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while not (line := await process.stdout.readline()).startswith(b"= "):  # others are the log's
                assert line, "the process ended"
        return json.loads(line[2:])


class Tunnel:
    """What goes through a bare multiplexer, and through the hub's Links."""

    def __init__(self, mux: Mux, links: Links) -> None:
        self._mux, self._links = mux, links

    async def call(self) -> None:
        """One message there, the same back."""
        stream = self._mux.open(b"call", _PAYLOAD, end=True)
        assert await stream.receive() == _PAYLOAD

    async def granted(self) -> None:
        """An inventory as a user: grant, deadline, trace, the agent's pipeline."""
        request = inventory_service_pb2.GetInventoryRequest()
        await self._links.call(UID, _GET_INVENTORY, request, DEV, timeout=10)

    async def body(self) -> None:
        """21 MB of raw bytes."""
        stream = self._mux.open(f"body {_BODY}".encode(), end=True)
        size = 0
        while content := await stream.read():
            size += len(content)
        assert size == _BODY * len(CHUNK)

    async def watch(self) -> None:
        """Messages of 4 KB as fast as they come."""
        stream = self._mux.open(f"watch {_EVENTS}".encode(), end=True)
        count = 0
        while await stream.receive() is not None:
            count += 1
        assert count == _EVENTS


class Ordinary:
    """The same over grpc.aio."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.unary_unary("/bench.Agent/Call")
        self._body: Any = channel.unary_stream("/bench.Agent/Body")
        self._watch: Any = channel.unary_stream("/bench.Agent/Watch")

    async def call(self) -> None:
        """One message there, the same back."""
        assert await self._call(_PAYLOAD, timeout=10) == _PAYLOAD

    async def body(self) -> None:
        """21 MB in messages of 64 KiB."""
        size = 0
        async for content in self._body(str(_BODY).encode(), timeout=60):
            size += len(content)
        assert size == _BODY * len(CHUNK)

    async def watch(self) -> None:
        """One message per event."""
        count = 0
        async for _ in self._watch(str(_EVENTS).encode(), timeout=60):
            count += 1
        assert count == _EVENTS


class Served:
    """The same inventory over grpc.aio, with a deadline and a trace, through the same pipeline."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get: Any = channel.unary_unary(f"/{INVENTORY.full_name}/GetInventory")

    async def call(self) -> None:
        """One inventory."""
        with trace.span("bench"):
            metadata = (("traceparent", trace.traceparent()),)
            reply = await self._get(inventory_service_pb2.GetInventoryRequest().SerializeToString(), timeout=10, metadata=metadata)
        inventory_service_pb2.GetInventoryResponse.FromString(reply)


async def _cpu(far: Far, call: Call, times: int, in_flight: int = 1) -> float:
    """Microseconds of both ends' CPU per call."""
    before = time.process_time() + await far.cpu_seconds()

    async def lane() -> None:
        for _ in range(times // in_flight):
            await call()

    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return (time.process_time() + await far.cpu_seconds() - before) * 1e6 / (times // in_flight * in_flight)


async def _bar(name: str, goal: float, far: Far, sides: tuple[Call, Call], times: int, in_flight: int = 1) -> None:  # noqa: PLR0917 -- a line of the table
    """`sides`: the tunnel's and gRPC's."""
    pairs = [[await _cpu(far, side, times, in_flight) for side in sides] for _ in range(ROUNDS + 1)][1:]  # the first warms up
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    _print(name, ratio, goal, "higher", f"CPU of both ends, grpc.aio / tunnel: {theirs:.0f} / {ours:.0f} µs")


def _print(name: str, ratio: float, goal: float, better: str, what: str) -> None:
    line = {"bar": name, "ratio": round(ratio, 2), "goal": goal, "better": better, "samples": ROUNDS, "what": what}
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()


async def _slow_link(mux: Mux) -> None:
    """A small call every 50 ms: alone, then beside four downloads."""
    idle = await _median_call(mux, 40)
    downloads = [asyncio.create_task(_download(mux), name=f"download {i}") for i in range(4)]
    await asyncio.sleep(2)  # windows have grown and the link is full
    busy = await _median_call(mux, 80)
    size = [task.cancel() for task in downloads]
    speed = sum(await asyncio.gather(*downloads)) / 1e6
    queue = 0.030
    what = f"p50 of a small call beside {len(size)} downloads ({speed:.0f} MB/s in all) / idle p50 + link queue: {busy * 1000:.0f} / "
    _print("tunnel_slow_link", busy / (idle + queue), 1.6, "lower", what + f"{idle * 1000:.0f} + {queue * 1000:.0f} ms")


async def _median_call(mux: Mux, times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        stream = mux.open(b"call", _PAYLOAD, end=True)
        await stream.receive()
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(0.05)
    return statistics.median(taken)


async def _download(mux: Mux) -> float:
    """Bytes a second until it is cancelled."""
    stream, size, start = mux.open(f"body {10**6}".encode(), end=True), 0, time.perf_counter()
    try:
        while content := await stream.read():
            size += len(content)
    except asyncio.CancelledError:
        stream.reset(Reset.CANCELLED)
    return size / (time.perf_counter() - start)


async def measure(folder: Path) -> None:
    """Starts the ends, and runs the bars."""
    authority, _ = Authority.create("bench", now=datetime.now(UTC))
    rig = Rig(folder, authority)
    rig.pair("agent", dns=("localhost",), uri=f"{SPIFFE}/cluster/{UID}")
    kubeconfig(folder / "kubeconfig", "https://127.0.0.1:1", ca=folder / "ca.crt")
    made: asyncio.Queue[Connection] = asyncio.Queue()

    def greet(connection: Connection) -> None:
        connection.mux.hello(b"hub")
        made.put_nowait(connection)

    tls = server_tls(folder / "gateway.crt", folder / "gateway.key", folder / "ca.crt")
    bare = await listen("127.0.0.1", 0, tls, lambda: Connection(odd=True, accept=lambda _: _refuse, on_made=greet))
    port = bare.sockets[0].getsockname()[1]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(rig.running())
        far = await stack.enter_async_context(Far.started("agent.py", folder, port, rig.port, UID))
        mux = await _greeted(await made.get())
        channels = [await stack.enter_async_context(_channel(folder, port)) for port in far.ports]
        tunnel, ordinary, same = Tunnel(mux, rig.links), Ordinary(channels[0]), Served(channels[1])
        await _bar("tunnel_call_1", 3.5, far, (tunnel.call, ordinary.call), 1500)
        await _bar("tunnel_call_32", 8, far, (tunnel.call, ordinary.call), 3200, 32)
        await _bar("tunnel_granted_1", 2.5, far, (tunnel.granted, ordinary.call), 1500)
        await _bar("tunnel_granted_32", 5, far, (tunnel.granted, ordinary.call), 3200, 32)
        await _bar("tunnel_pipeline_1", 2.5, far, (tunnel.granted, same.call), 1500)
        await _bar("tunnel_pipeline_32", 5, far, (tunnel.granted, same.call), 3200, 32)
        await _bar("tunnel_body", 1.3, far, (tunnel.body, ordinary.body), 3)
        await _bar("tunnel_watch", 5, far, (tunnel.watch, ordinary.watch), 1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(rig.running())
        relay = await stack.enter_async_context(Far.started("relay.py", port))
        await stack.enter_async_context(Far.started("agent.py", folder, relay.ports[0], rig.port, UID))
        await _slow_link(await _greeted(await made.get()))
    bare.close()


async def _greeted(connection: Connection) -> Mux:
    await connection.mux.greeted(10)
    return connection.mux


async def _refuse(stream: Stream, _header: bytes) -> None:
    stream.end()


@asynccontextmanager
async def _channel(folder: Path, port: int) -> AsyncIterator[grpc.aio.Channel]:
    ca, key, certificate = ((folder / name).read_bytes() for name in ("ca.crt", "gateway.key", "gateway.crt"))
    async with grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca, key, certificate)) as channel:
        yield channel


def main() -> None:
    """Measures in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        trace.setup("bench", endpoint=None)
        log.setup("bench", level="ERROR")
        uvloop.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
