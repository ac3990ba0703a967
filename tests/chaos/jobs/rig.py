"""The processes of the chaos test, and what is done to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local import cache
from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.errors import LocalError
from deploy.local.part import Part, until_open
from deploy.local.ports import Ports
from deploy.local.postgres import Postgres, socket_folder
from deploy.local.process import Command, Process, base_env
from deploy.local.scratch import Scratch
from libs import jobs
from libs.bus import Bus, streams
from libs.faults import Fault
from libs.pg import Database
from tests.chaos.jobs.kinds import SCHEMA
from tests.kit.nats import NatsServer, nats_server_part

_ROOT = Path(__file__).parents[3]
WORKERS = ("worker-1", "worker-2", "worker-3")


@dataclass
class Rig:
    """Everything that runs.

    Attributes:
        rng: for what is done to them; the story has its own, so that neither disturbs the other.
        deaths: what was done, in order.
        deck: what comes next.
        tail: a copy of the broker's store from earlier, to fall back to.
    """

    folder: Path
    nats: NatsServer
    server: Postgres
    ports: Ports
    rng: random.Random
    running: dict[str, Process] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)
    deck: list[str] = field(default_factory=list)
    tail: Path | None = None
    database: Database | None = None
    bus: Bus | None = None

    async def start(self) -> None:
        """Starts all, makes schemas and streams."""
        gateway = self.ports.take("gateway")
        self.parts = {
            "postgresql": Part("postgresql", self.server.command, self.server.ready, self.server.prepare),
            "nats": nats_server_part(self.nats),
            "gateway": self._python("gateway", "tests.chaos.jobs.rights", str(gateway), port=gateway),
        }
        settings = self.folder / "settings.json"
        tls = [str(path) for path in self.nats.tls("worker")]
        facts = {"dsn": self.server.dsn if self._password_there() else "", "nats": self.nats.url, "tls": tls, "gateway": gateway}
        for name in self.parts:
            await self.parts[name].prepare()
            await self.up(name)
        facts |= {"dsn": self.server.dsn, "seed": str(self.nats.seed_file("worker"))}
        settings.write_text(json.dumps(facts))
        self.database = await Database.connect(self.server.dsn, application_name="chaos", patience=60)
        await jobs.prepare(self.database)
        async with self.database.transaction() as tx:
            await tx.execute(SCHEMA)
        self.bus = await Bus.connect(self.nats.url, name="gateway", tls=self.nats.tls(), nkey_seed_file=self.nats.seed_file())
        await self.streams()
        for name in WORKERS:
            self.parts[name] = self._python(name, "tests.chaos.jobs.worker", str(settings), name)
            await self.up(name)

    def _password_there(self) -> bool:
        return (self.folder / "postgres.password").exists()

    def _python(self, name: str, module: str, *arguments: str, port: int = 0) -> Part:
        env = dict(base_env()) | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'gen'}"}

        def command() -> Command:
            return Command((sys.executable, "-m", module, *arguments), self.folder / f"log/{name}.log", env=env)

        async def ready() -> None:
            if port:
                await until_open(port)

        return Part(name, command, ready)

    async def streams(self) -> None:
        """The streams are there, as the gateway sees to it."""
        assert self.bus is not None
        for stream in streams.HUB:
            for _ in range(100):
                try:
                    await self.bus.ensure_stream(stream)
                    break
                except Fault:
                    await asyncio.sleep(0.2)

    async def up(self, name: str) -> None:
        """Starts a part; one that was killed may leave something that must go first."""
        for left in reversed(range(20)):
            try:
                self.running[name] = await parts.start(self.parts[name])
            except LocalError:
                if not left:
                    raise
                await asyncio.sleep(0.5)
            else:
                return

    async def kill(self, name: str) -> None:
        """kill -9, and after a while it is back."""
        process = self.running[name]
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await asyncio.sleep(self.rng.uniform(0, 1.5))
        await self.up(name)

    async def lose_tail(self) -> None:
        """The broker dies and comes back with an older store: newer messages are lost, older ones are there again."""
        store = self.nats.server.folder / "store"
        process = self.running["nats"]
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        if self.tail is not None:
            shutil.rmtree(store, ignore_errors=True)
            shutil.copytree(self.tail, store)
        else:
            shutil.rmtree(store, ignore_errors=True)
        await self.up("nats")
        await self.streams()

    async def keep_tail(self) -> None:
        """Copies the broker's store as it is now, torn as a crash would leave it."""
        store, copy = self.nats.server.folder / "store", self.folder / f"tail-{self.rng.random()}"
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(store, copy)
            self.tail = copy

    async def drain(self, name: str) -> None:
        """A deploy: SIGTERM, the end, a new one."""
        await self.running[name].stop()
        await self.up(name)

    async def freeze(self, name: str) -> None:
        """A worker stands still longer than its lease and wakes up as a ghost."""
        os.kill(self.running[name].pid, signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(4.5, 6.5))
        os.kill(self.running[name].pid, signal.SIGCONT)

    async def duplicate(self) -> None:
        """What is in the stream is published again, twice."""
        assert self.bus is not None
        with contextlib.suppress(Fault):
            for data in list((await self.bus.stored(streams.JOBS.name)).values())[:50]:
                for _ in range(2):
                    await self.bus.publish_bytes("gems.jobs.default", data, type_="kubegems.jobs.v1.JobDispatch", seconds=2)

    async def jump(self) -> None:
        """The clock of the engine jumps hours ahead or back, and is right again later."""
        assert self.database is not None
        for hours in (self.rng.choice([-3.0, -0.02, 0.02, 3.0]), 0.0):
            later = f"'SELECT now() + make_interval(secs => {hours * 3600})'"
            with contextlib.suppress(Fault):
                async with self.database.transaction() as tx:
                    await tx.execute(f"CREATE OR REPLACE FUNCTION jobs.clock() RETURNS timestamptz LANGUAGE sql STABLE AS {later}")
            await asyncio.sleep(self.rng.uniform(0.2, 1.5))

    async def right_clock(self) -> None:
        """No jump any more."""
        assert self.database is not None
        async with self.database.transaction() as tx:
            await tx.execute("CREATE OR REPLACE FUNCTION jobs.clock() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now()'")

    async def strike(self) -> None:
        """The next thing of the seed's deck happens."""
        what = self._draw()
        self.deaths.append(what)
        verb, _, name = what.partition(" ")
        if name in self.parts:
            await {"kill": self.kill, "drain": self.drain, "freeze": self.freeze}[verb](name)
        else:
            await {
                "lose tail": self.lose_tail, "keep tail": self.keep_tail, "duplicate": self.duplicate, "jump": self.jump
            }[what]()  # fmt: skip

    def _draw(self) -> str:
        """Each kind of strike comes once before any comes again; the order is the seed's."""
        if not self.deck:
            worker = self.rng.choice(WORKERS)
            self.deck = [
                "kill worker-1", "kill worker-2", "kill worker-3", f"drain {worker}", f"freeze {worker}", "kill gateway", "kill nats",
                "keep tail", "lose tail", "kill postgresql", "duplicate", "jump",
            ]  # fmt: skip
            self.rng.shuffle(self.deck)
        return self.deck.pop()

    async def stop(self) -> None:
        """Ends all."""
        if self.bus is not None:
            await self.bus.close()
        if self.database is not None:
            await self.database.close()
        for name in reversed(list(self.running)):
            process = self.running[name]
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            await process.stop()


@contextlib.asynccontextmanager
async def rig(folder: Path, seed: str) -> AsyncIterator[Rig]:
    """Runs everything for the length of a block."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    certificates = Certificates(folder / "certificates")
    certificates.renew()
    ports, sockets = Ports(documented=False), socket_folder()
    with Scratch(cache.postgres_user()) as scratch:
        server = Postgres(scratch.path / "data", folder / "log/postgres.log", folder / "postgres.password", sockets, durable=False)
        made = Rig(folder, NatsServer.create(folder, certificates, ports.take("nats")), server, ports, random.Random(seed))
        try:
            await made.start()
            yield made
        finally:
            await made.stop()
            shutil.rmtree(sockets, ignore_errors=True)


def settled(counts: dict[str, Any]) -> bool:
    """Whether nothing waits or runs any more."""
    return not counts.get("QUEUED") and not counts.get("RUNNING")
