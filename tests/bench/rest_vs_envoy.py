"""Our REST against Envoy's transcoder in front of our own grpc.aio server: the same pipeline, the same handlers, the same answers.

Rounds are interleaved and the figures are medians of the pairs' ratios. CPU is that of all processes of a side: ours is one,
the other is Envoy and its backend. Both sides speak clear text, or both TLS. Envoy runs one worker.

`python tests/bench/rest_vs_envoy.py` prints JSON lines; `--table` a Markdown table; a name measures one case alone;
`--profile` writes a profile of our side beside it. Needs `/proc`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import uvloop
from google.protobuf import json_format

from libs.clock import SystemClock, new_id
from libs.crypt import signing
from libs.crypt.ca import SPIFFE, Authority
from libs.rest.encode import to_json
from services.gateway.identity.keys import Keyring
from services.gateway.identity.tokens import Tokens
from tests.bench.envoy import answers, load, protos, proxy
from tests.bench.envoy.server import Keys, Setting
from tests.kit.data import postgres_server

ROUNDS = 7
_ROOT = Path(__file__).parents[2]
_EVENTS = 20_000
_SSE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of both sides.

    Attributes:
        path: of our side.
        other: of Envoy's side, where that is another one.
        times: requests of one connection in a round.
        lanes: connections.
        units: things in an answer that rates count: 1, or events.
        gates: figure → goal; `rps` is ours by Envoy's, `cpu` the same.
    """

    name: str
    what: str
    path: str
    times: int
    lanes: int = 16
    other: str = ""
    accept: str = "application/json"
    bare: bool = False
    tls: bool = False
    database: bool = False
    write: bool = False
    units: int = 1
    gates: tuple[tuple[str, float], ...] = ()


_GET = f"/api/v1/{answers.TENANT}"
CASES = [
    Case("small_get_bare", "small GET, transcoder alone", _GET, 250, bare=True, gates=(("rps", 2.2), ("cpu", 0.35))),
    Case("small_get", "small GET, whole pipeline", _GET, 200, gates=(("rps", 1.5), ("cpu", 0.5))),
    Case("small_get_tls", "small GET, whole pipeline, TLS", _GET, 200, tls=True, gates=(("rps", 1.5), ("cpu", 0.5))),
    Case("list_500", "list of 500 environments", f"{_GET}/projects/shop/environments", 6, lanes=4, gates=(("cpu", 1.0),)),
    Case("blob", "2 MB HttpBody", "/api/v1/blobs/one", 60, lanes=4, gates=(("cpu", 0.4),)),
    Case(
        "sse_batched", "SSE, 100 events in a write", f"/api/v1/changes?count={_EVENTS}", 2, lanes=2,
        other=f"/api/v1/changeBatches?count={_EVENTS}&batch=100", accept=_SSE, units=_EVENTS, gates=(("rps", 1.0), ("cpu", 1.0)),
    ),
    Case("database_get", "GET from PostgreSQL", "/api/v1/tenants/t{lane}", 50, database=True),
    Case("database_write", "PATCH into PostgreSQL, with its audit record", "/api/v1/tenants/t{lane}", 25, database=True, write=True),
]  # fmt: skip


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
        times = took.latencies
        return Cost(
            whole, own, things / took.seconds, times[len(times) // 2] * 1000, times[min(len(times) - 1, len(times) * 99 // 100)] * 1000
        )


@asynccontextmanager
async def server(setting: Setting) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """A server process and its port."""
    pipe = asyncio.subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'gen'}"}
    command = [sys.executable, "-m", "tests.bench.envoy.server", json.dumps(asdict(setting))]
    with (Path(setting.folder) / f"{setting.side}.log").open("wb") as told:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=told, env=environment, cwd=_ROOT)
    try:
        yield int(await _told(process)), process
    finally:
        if setting.profile and process.stdin is not None:
            process.stdin.close()
        else:
            process.kill()
        await process.wait()


async def _told(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    if not line:
        raise RuntimeError("the server has ended; its log is beside its keys")
    return json.loads(line)


class Bench:
    """All that the cases share: keys, a token, descriptors, a database when one is asked for."""

    def __init__(self, folder: Path, stack: AsyncExitStack, profile: str) -> None:
        self.folder, self._stack, self._profile = folder, stack, profile
        self.descriptors = protos.compile_into(folder)
        key = _prepare(folder)
        issuer = Tokens(cast("Keyring", Keys(key)), SystemClock())
        self.token = issuer.access("dev", new_id(), new_id(), datetime.now(UTC) + timedelta(hours=1)).token
        self._dsn = ""

    async def measure(self, case: Case) -> list[tuple[Cost, Cost]]:
        """Pairs of rounds: ours and Envoy's."""
        setting = Setting(str(self.folder), "rest", bare=case.bare, tls=case.tls, database=await self._database() if case.database else "")
        async with AsyncExitStack() as stack:
            ours = await self._side(stack, replace(setting, profile=self._profile), envoy=False)
            other = await self._side(stack, replace(setting, side="grpc"), envoy=True)
            if case.database:
                await self._fill()
            self._same(case, ours, other)
            tls = ssl.create_default_context(cafile=str(self.folder / "ca.crt")) if case.tls else None
            asked, asked_other = self._requests(case, case.path), self._requests(case, case.other or case.path)
            found = [(await ours.round(case, asked, tls), await other.round(case, asked_other, tls)) for _ in range(ROUNDS + 1)]
        return found[1:]  # the first warms up

    async def unbatched(self, case: Case) -> list[tuple[Cost, Cost]]:
        """Pairs of rounds: our stream batched and not."""
        setting = Setting(str(self.folder), "rest")
        async with AsyncExitStack() as stack:
            batched = await self._side(stack, setting, envoy=False)
            single = await self._side(stack, replace(setting, batched=False), envoy=False)
            asked = self._requests(case, case.path)
            found = [(await batched.round(case, asked, None), await single.round(case, asked, None)) for _ in range(ROUNDS + 1)]
        return found[1:]

    async def _side(self, stack: AsyncExitStack, setting: Setting, *, envoy: bool) -> Side:
        port, process = await stack.enter_async_context(server(setting))
        if not envoy:
            return Side(port, process, None)
        front = await stack.enter_async_context(
            proxy.running(self.folder, backend=port, descriptors=self.descriptors, services=protos.NAMES, tls=setting.tls)
        )
        return Side(front.port, process, front)

    def _requests(self, case: Case, path: str) -> list[bytes]:
        paths = [path.format(lane=lane) for lane in range(case.lanes if case.database else 1)]
        if case.write:
            return [load.patch(f"{p}?update_mask=description", self.token, b'{"description":"a team"}') for p in paths]
        return [load.get(p, self.token, case.accept) for p in paths]

    def _same(self, case: Case, ours: Side, other: Side) -> None:
        """Makes sure that both sides answer the same."""
        if case.write:
            return
        mine, theirs = (self._fetch(case, side.port, path) for side, path in ((ours, case.path), (other, case.other or case.path)))
        if case.units > 1:
            mine, theirs = ([json.loads(line[6:]) for line in text.splitlines() if line] for text in (mine, theirs))  # type: ignore[assignment]
            assert len(mine) == case.units
        else:
            mine, theirs = json.loads(mine), json.loads(theirs)
        assert mine == theirs, f"{case.name}: the sides answer differently"

    def _fetch(self, case: Case, port: int, path: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        made = (
            http.client.HTTPSConnection("localhost", port, context=context) if case.tls else http.client.HTTPConnection("localhost", port)
        )
        made.request("GET", path.format(lane=0), headers={"Authorization": f"Bearer {self.token}", "Accept": case.accept})
        reply = made.getresponse()
        body = reply.read()
        made.close()
        assert reply.status == 200, f"{case.name}: {reply.status} {body[:300]!r}"
        return body

    async def _database(self) -> str:
        if not self._dsn:
            found = await self._stack.enter_async_context(postgres_server(self.folder))
            self._dsn = found.dsn
        return self._dsn

    async def _fill(self) -> None:
        import asyncpg  # noqa: PLC0415 -- only for the cases with a database

        connection = await asyncpg.connect(self._dsn)
        sql = "INSERT INTO tenancy.tenants (uid, name, display_name) VALUES ($1, $2, $2) ON CONFLICT DO NOTHING"
        await connection.executemany(sql, [(new_id(), f"t{i}") for i in range(16)])
        await connection.close()


def _prepare(folder: Path) -> signing.SigningKey:
    authority, _ = Authority.create("bench", now=datetime.now(UTC))
    (folder / "ca.crt").write_text(authority.certificate)
    uri = f"{SPIFFE}/hub/gateway"
    pair = authority.issue("gateway", now=datetime.now(UTC), lifetime=timedelta(days=1), dns=("localhost",), ips=("127.0.0.1",), uri=uri)
    pair.write(folder, "gateway")
    key = signing.SigningKey.generate("k")
    (folder / "key").write_bytes(key.private)
    return key


# --- figures ------------------------------------------------------------------------------------------------------------


def _figure(bar: str, ratio: float, goal: float | None, better: str, what: str) -> dict[str, Any]:
    return {"bar": bar, "ratio": round(ratio, 3), "goal": goal, "better": better, "samples": ROUNDS, "what": what}


def _median(found: list[tuple[Cost, Cost]], of: Callable[[Cost], float]) -> tuple[float, float, float]:
    """Of the pairs' ratios, of our values, of theirs."""
    pairs = [(of(a), of(b)) for a, b in found]
    return statistics.median(a / b for a, b in pairs), statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _lines(case: Case, found: list[tuple[Cost, Cost]]) -> list[dict[str, Any]]:
    gates = dict(case.gates)
    rate, ours, theirs = _median(found, lambda c: c.rate)
    unit = "events" if case.units > 1 else "requests"
    lines = [
        _figure(f"{case.name}_rps", rate, gates.get("rps"), "higher", f"{case.what}: {ours:.0f} / {theirs:.0f} {unit}/s, ours / Envoy's")
    ]
    cpu, ours, theirs = _median(found, lambda c: c.cpu)
    backend = statistics.median(b.backend_cpu for _, b in found)
    told = f"{case.what}: CPU {ours:.4f} / {theirs:.4f} ms (backend {backend:.4f} + Envoy {theirs - backend:.4f}) per {unit[:-1]}"
    lines.append(_figure(f"{case.name}_cpu", cpu, gates.get("cpu"), "lower", told))
    p50, p99 = (_median(found, lambda c, n=name: getattr(c, n)) for name in ("p50", "p99"))  # type: ignore[misc]
    lines.append(_figure(f"{case.name}_p50", p50[0], None, "lower", f"{case.what}: p50 {p50[1]:.1f} / {p50[2]:.1f} ms"))
    lines.append(_figure(f"{case.name}_p99", p99[0], None, "lower", f"{case.what}: p99 {p99[1]:.1f} / {p99[2]:.1f} ms"))
    return lines


def _row(case: Case, found: list[tuple[Cost, Cost]]) -> str:
    values = {name: _median(found, lambda c, n=name: getattr(c, n)) for name in ("rate", "cpu", "p50", "p99")}  # type: ignore[misc]
    rate, cpu, p50, p99 = values.values()
    spread = sorted(a.cpu / b.cpu for a, b in found)
    goals = ", ".join(f"{name} {'≥' if name == 'rps' else '≤'} {goal:g}" for name, goal in case.gates) or "–"
    micro = case.units > 1
    ours, theirs = (f"{v * (1000 if micro else 1):.{1 if micro else 3}f}" for v in cpu[1:])
    return (
        f"| {case.what} | {rate[1]:,.0f} / {rate[2]:,.0f} | **{rate[0]:.2f}** | {ours} / {theirs}{' µs' if micro else ''} |"
        f" **{cpu[0]:.2f}** ({spread[0]:.2f}–{spread[-1]:.2f}) | {p50[1]:.1f}/{p99[1]:.1f} : {p50[2]:.1f}/{p99[2]:.1f} | {goals} |"
    )


def encoder() -> dict[str, Any]:
    """CPU of our encoder against protobuf's own json_format, on the list's 500 resources; both say the same."""
    message = answers.environments()
    assert json.loads(to_json(message)) == json_format.MessageToDict(message)

    def spent(work: Callable[[], object]) -> float:
        before = time.process_time()
        work()
        return time.process_time() - before

    pairs = [(spent(lambda: json_format.MessageToJson(message, indent=None)), spent(lambda: to_json(message))) for _ in range(ROUNDS + 1)][
        1:
    ]
    ratio = statistics.median(a / b for a, b in pairs)
    told = f"500 environments as JSON: json_format {statistics.median(a for a, _ in pairs) * 1000:.1f} ms, ours "
    return _figure("encoder_vs_json_format", ratio, 2.0, "higher", f"{told}{statistics.median(b for _, b in pairs) * 1000:.1f} ms")


async def main(wanted: list[str], *, table: bool, profile: str) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            bench = Bench(Path(folder), stack, profile)
            if not wanted or "encoder" in wanted:
                _print(json.dumps(encoder()))
            for case in [c for c in CASES if not wanted or c.name in wanted]:
                found = await bench.measure(case)
                for line in [_row(case, found)] if table else map(json.dumps, _lines(case, found)):
                    _print(line)
                if case.name == "sse_batched":
                    _print(json.dumps(_batching(await bench.unbatched(case))))


def _batching(found: list[tuple[Cost, Cost]]) -> dict[str, Any]:
    rate, cpu = _median(found, lambda c: c.rate), _median(found, lambda c: c.cpu)
    told = f"SSE batched / one write per event: {rate[1]:.0f} / {rate[2]:.0f} events/s, CPU {cpu[1] * 1000:.1f} / {cpu[2] * 1000:.1f} µs"
    return _figure("sse_batching", rate[0], 6.0, "higher", told)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if not a.startswith("--")]
    uvloop.run(main(names, table="--table" in sys.argv, profile=os.environ.get("BENCH_PROFILE", "")))
