"""Jobs a second of one worker process, no-op jobs, against peers started in the same run; enqueueing; a long backlog.

Ours has everything on: retries, status rows, progress, events, tracing, and its dispatcher and relay in the same process.
Peers run in venvs of their own in the user's cache, which the first run makes. arq and celery need a `redis-server` on
PATH (Debian's package); without one they are told as not measured. Rounds are interleaved; figures are medians.

`python -m tests.bench jobs` prints one JSON line per figure, and how far it is on stderr; it takes about three minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop
from google.protobuf.message import Message

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.part import Part, until_open
from deploy.local.ports import Ports
from deploy.local.process import Command
from deploy.local.programs import find
from libs import jobs, log
from libs.bus import Bus, streams
from libs.bus.relay import Relay
from libs.jobs import Context, Kind, Order, tickets
from libs.jobs.dispatch import Dispatcher
from libs.jobs.runner import Runner, collect_seldom
from libs.log import trace
from libs.pg import Database
from tests.kit.data import DatabaseServer, postgres_server
from tests.kit.nats import NatsServer, nats_server_part

JOBS, WARM, PEER_JOBS, ROUNDS, BACKLOG = 10_000, 1500, 4000, 3, 100_000
_RUN_SECONDS = 60.0  # of one run, enqueueing included
_PEERS = Path(__file__).parent / "peers"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kubegems/bench"
_NEEDS = {"jobs-a": ("arq", "taskiq", "taskiq-nats", "uvloop"), "jobs-b": ("celery[redis]", "procrastinate", "psycopg-binary")}
_ORDER = Order(kind="noop", target="tenants/a", creator="users/bench")


def kind() -> Kind:
    """A job that does nothing but tell how far it is."""

    async def handler(context: Context, _payload: Message) -> None:
        context.progress(50, "half")

    return Kind("noop", targets="tenants", depth=2, permission="jobs.jobs.create", handler=handler)


async def work(settings: dict[str, Any]) -> None:
    """The worker process; ends when it is killed."""
    trace.setup("bench", endpoint=None)
    log.setup("worker", level="INFO")
    known = jobs.kinds(kind())
    database = await Database.connect(settings["dsn"], application_name="bench")
    tls = tuple(Path(path) for path in settings["tls"])
    bus = await Bus.connect(settings["nats"], name="worker", tls=tls, nkey_seed_file=Path(settings["seed"]))  # type: ignore[arg-type] # three files

    async def may(*_: str) -> bool:
        return True

    dispatcher = Dispatcher(database, bus, known, window=1000, bundle=tickets.bundle(500))
    runner = Runner(database, known, allowed=may, worker="bench", concurrency=500, on_claimed=dispatcher.claimed)
    collect_seldom()
    await database.listen(jobs.WAKE, dispatcher.wake)
    await asyncio.gather(dispatcher.run(), runner.run(bus), Relay(database, bus, [jobs.SCHEMA]).run())


class Bench:
    """The servers of one run."""

    def __init__(self, folder: Path, postgres: DatabaseServer, nats: NatsServer, ports: Ports) -> None:
        self.folder = folder
        self.postgres = postgres
        self.nats = nats
        self.ports = ports

    @contextlib.asynccontextmanager
    async def fresh(self) -> AsyncIterator[tuple[Database, str]]:
        """An empty database and streams."""
        async with self.postgres.fresh(f"bench_{secrets.token_hex(4)}") as made:
            database = await Database.connect(made.dsn, application_name="bench")
            await jobs.prepare(database)
            bus = await Bus.connect(self.nats.url, name="gateway", tls=self.nats.tls(), nkey_seed_file=self.nats.seed_file())
            await bus.ensure_stream(streams.JOBS)
            await bus.ensure_stream(streams.NOTICES)
            try:
                yield database, made.dsn
            finally:
                await bus.delete_stream(streams.JOBS.name)
                await bus.close()
                await database.close()

    async def ours(self, backlog: int = 0) -> float:
        """Jobs a second, after a warm-up, with so many more behind them."""
        async with self.fresh() as (database, dsn):
            with trace.span("bench enqueue"):  # as an order of a call has it
                await enqueue(database, JOBS + WARM + backlog, 1000)
            settings = self.folder / "settings.json"
            facts = {"dsn": dsn, "nats": self.nats.url, "tls": [str(p) for p in self.nats.tls("worker")]}
            settings.write_text(json.dumps(facts | {"seed": str(self.nats.seed_file("worker"))}))
            async with database.transaction() as tx:
                await tx.execute("SELECT 1")
            async with _process((sys.executable, __file__, "--work", str(settings)), self.folder / "worker.log", {}):
                return await self._rate(database)

    async def _rate(self, database: Database) -> float:
        """From the outcomes' own times, read once when all are there; until then only the short table of attempts is looked at."""
        sql = "SELECT time FROM jobs.claims WHERE outcome = 'SUCCEEDED' ORDER BY time LIMIT 1 OFFSET $1"
        deadline = time.monotonic() + _RUN_SECONDS
        while True:
            await asyncio.sleep(0.5)
            async with database.transaction(readonly=True) as tx:
                done = await tx.value("SELECT count(*) FROM jobs.claims")
                if done >= WARM + JOBS:
                    first, last = await tx.value(sql, WARM - 1), await tx.value(sql, WARM + JOBS - 1)
                    return JOBS / float((last - first).total_seconds())
            assert time.monotonic() < deadline, f"our jobs do not end: {done} of {WARM + JOBS}"

    async def taskiq(self) -> float:
        """Jobs a second of taskiq-nats, batches of 100."""
        port = self.ports.take("nats-peer")
        store = self.folder / f"peer-{port}-{secrets.token_hex(3)}"
        command = Command((find("nats-server"), "-js", "-sd", str(store), "-a", "127.0.0.1", "-p", str(port)), self.folder / "peer.log")
        async with parts.running(Part("nats", lambda: command, lambda: until_open(port))):
            env = {"PEER_NATS": f"nats://127.0.0.1:{port}", "PEER_JOBS": str(PEER_JOBS), "PYTHONPATH": str(_PEERS)}
            await _run((_bin("jobs-a", "python"), str(_PEERS / "taskiq_peer.py"), str(PEER_JOBS)), env)
            argv = (_bin("jobs-a", "taskiq"), "worker", "taskiq_peer:broker", "--workers", "1", "--max-async-tasks", "500")
            return PEER_JOBS / await _told((*argv, "--log-level", "ERROR"), env)

    async def procrastinate(self) -> float:
        """Jobs a second of procrastinate."""
        async with self.postgres.fresh(f"bench_{secrets.token_hex(4)}") as made:
            argv = (_bin("jobs-b", "python"), str(_PEERS / "procrastinate_peer.py"), str(PEER_JOBS // 4))
            return PEER_JOBS / 4 / await _told(argv, {"PEER_POSTGRES": made.dsn})

    async def arq(self, port: int) -> float:
        """Jobs a second of arq, tuned."""
        argv = (_bin("jobs-a", "python"), str(_PEERS / "arq_peer.py"), str(PEER_JOBS))
        return PEER_JOBS / await _told(argv, {"PEER_REDIS": str(port)})

    async def celery(self, port: int) -> float:
        """Jobs a second of celery prefork with one child."""
        env = {"PEER_REDIS": str(port), "PEER_JOBS": str(PEER_JOBS), "PYTHONPATH": str(_PEERS)}
        await _run((_bin("jobs-b", "python"), str(_PEERS / "celery_peer.py"), str(PEER_JOBS)), env)
        return PEER_JOBS / await _told((_bin("jobs-b", "celery"), "-A", "celery_peer", "worker", "-c", "1", "-l", "ERROR"), env)

    async def enqueueing(self) -> float:
        """How many times faster batches of 500 are than one by one."""
        async with self.fresh() as (database, _):
            rates = []
            for batch in (1, 500):
                begun = time.perf_counter()
                await enqueue(database, 1000, batch)
                rates.append(1000 / (time.perf_counter() - begun))
            return rates[1] / rates[0]


async def enqueue(database: Database, count: int, batch: int) -> None:
    """Places so many orders, so many in a transaction."""
    for start in range(0, count, batch):
        async with database.transaction() as tx:
            if batch == 1:
                await jobs.enqueue(tx, _ORDER)
            else:
                await jobs.enqueue_many(tx, [_ORDER] * min(batch, count - start))


def _bin(venv: str, name: str) -> str:
    return str(_CACHE / venv / "bin" / name)


def prepare() -> None:
    """Makes the peers' venvs, once."""
    for venv, needs in _NEEDS.items():
        if not Path(_bin(venv, "python")).exists():
            subprocess.run((sys.executable, "-m", "venv", str(_CACHE / venv)), check=True, timeout=120)
            subprocess.run((_bin(venv, "pip"), "install", "--quiet", *needs), check=True, timeout=300)


@contextlib.asynccontextmanager
async def _process(argv: tuple[str, ...], output: Path, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    with output.open("ab") as file:
        process = await asyncio.create_subprocess_exec(*argv, stdout=file, stderr=file, env=os.environ | env)
        try:
            yield process
        finally:
            process.kill()
            await process.wait()


async def _run(argv: tuple[str, ...], env: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(*argv, env=os.environ | env, stdout=subprocess.DEVNULL)
    assert await asyncio.wait_for(process.wait(), 45) == 0, argv


async def _told(argv: tuple[str, ...], env: dict[str, str]) -> float:
    """Runs a peer until it says how long it took."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, env=os.environ | env, stdout=pipe, start_new_session=True)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(45):
            async for line in process.stdout:
                if line.startswith(b"SECONDS "):
                    return float(line.split()[1])
        raise AssertionError(f"{argv} ended without a figure")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


@contextlib.asynccontextmanager
async def _redis(folder: Path, ports: Ports) -> AsyncIterator[int | None]:
    """A redis on a port of its own; None where there is no redis-server."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    port = ports.take("redis-peer")
    argv = (binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
    async with parts.running(Part("redis", lambda: Command(argv, folder / "redis.log"), lambda: until_open(port))):
        yield port


def tell(bar: str, ratio: float, goal: float, better: str, what: str) -> None:
    """One line."""
    print(json.dumps({"bar": bar, "ratio": round(ratio, 2), "goal": goal, "better": better, "samples": ROUNDS, "what": what}), flush=True)


async def measure(bench: Bench, redis: int | None) -> None:
    """All rounds, interleaved, then the figures; each run is told on stderr, and none takes longer than its time."""
    runs: dict[str, Callable[[], Awaitable[float]]] = {
        "ours": bench.ours, "backlog": lambda: bench.ours(BACKLOG), "taskiq-nats": bench.taskiq, "procrastinate": bench.procrastinate
    }  # fmt: skip
    if redis is not None:
        runs |= {"arq": lambda: bench.arq(redis), "celery": lambda: bench.celery(redis)}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        for name in list(runs):
            begun = time.monotonic()
            try:
                async with asyncio.timeout(_RUN_SECONDS):
                    rates[name].append(await runs[name]())
                told = f"{rates[name][-1]:.0f} jobs/s"
            except (AssertionError, TimeoutError, OSError) as error:  # one that fails keeps no other from being measured
                del runs[name], rates[name]
                told = f"failed: {error!r}"
            load = os.getloadavg()[0]
            print(f"round {number + 1} {name}: {told} ({time.monotonic() - begun:.0f} s, load {load:.1f})", file=sys.stderr, flush=True)
    compare({name: statistics.median(found) for name, found in rates.items()})
    tell("jobs_enqueue", await bench.enqueueing(), 5.0, "higher", "enqueue in batches of 500 / one by one")


def compare(middle: Mapping[str, float]) -> None:
    """Ratios of the medians."""
    for name, goal in (("taskiq-nats", 1.2), ("procrastinate", 0.0), ("arq", 5.0), ("celery", 6.0)):
        if name in middle and "ours" in middle:
            what = f"no-op jobs/s, one worker: {middle['ours']:.0f} / {middle[name]:.0f}"
            tell(f"jobs_vs_{name}", middle["ours"] / middle[name], goal, "higher", what)
        else:
            print(json.dumps({"bar": f"jobs_vs_{name}", "goal": goal, "what": "not measured: failed, or no redis-server"}), flush=True)
    if "ours" in middle and "backlog" in middle:
        what = f"jobs/s with nothing behind / with {BACKLOG} queued: {middle['ours']:.0f} / {middle['backlog']:.0f}"
        tell("jobs_backlog", middle["ours"] / middle["backlog"], 1.5, "lower", what)


async def main() -> None:
    """Starts the servers and measures."""
    prepare()
    trace.setup("bench", endpoint=None)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o700)
        certificates, ports = Certificates(folder / "certificates"), Ports(documented=False)
        certificates.renew()
        nats = NatsServer.create(folder, certificates, ports.take("nats"))
        async with postgres_server(folder) as postgres, parts.running(nats_server_part(nats)), _redis(folder, ports) as redis:
            await measure(Bench(folder, postgres, nats, ports), redis)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        uvloop.run(work(json.loads(Path(sys.argv[2]).read_text())))
    else:
        asyncio.run(main())
