"""Many agents on one gateway: what an idle one costs, and how soon all are back when the gateway was killed and started.

The gateway is a process of its own on a real PostgreSQL and NATS; the agents are the real link, all in this process, each
with its own certificate. `python tests/bench/agents.py` prints one JSON line per figure; `--count N` is for others than 500.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from libs import log
from libs.log import trace
from tests.kit import agents as simulated
from tests.kit.agents import SimulatedAgent
from tests.kit.data import postgres_server
from tests.kit.gateway import configuration
from tests.kit.nats import NatsServer, nats_server_part
from tests.kit.replicas import GatewayProcess

AGENTS, ROUNDS = 500, 3
_KIB = 1024
_QUIET = 8.0  # seconds for the gateway to come to rest
_STEADY = 11.0  # seconds after which an agent's back-off starts anew
_SECONDS = 90.0


def tell(bar: str, figure: float, goal: float, samples: int, what: str) -> None:
    """One line."""
    line = {"bar": bar, "ratio": round(figure, 2), "goal": goal, "better": "lower", "samples": samples, "what": what}
    print(json.dumps(line), flush=True)


def memory(gateway: GatewayProcess) -> int:
    """Bytes that are the gateway's alone, or its share."""
    assert gateway.process is not None
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{gateway.process.pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * _KIB


def processor(gateway: GatewayProcess) -> float:
    """Seconds of CPU that the gateway has used."""
    assert gateway.process is not None
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def all_online(gateway: GatewayProcess, count: int) -> None:
    """Waits until that many tunnels stand; AssertionError after 90 s."""
    async with asyncio.timeout(_SECONDS):
        while True:
            try:
                if await gateway.metric("kubegems_links_online") >= count:
                    return
            except OSError:
                pass  # it is not there yet
            await asyncio.sleep(0.1)


@asynccontextmanager
async def hub(count: int) -> AsyncIterator[tuple[GatewayProcess, Sequence[SimulatedAgent]]]:
    """A gateway without agents, and agents that do not run yet."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o700)
        certificates, ports = Certificates(folder / "certificates"), Ports(documented=False)
        certificates.renew()
        nats = NatsServer.create(folder, certificates, ports.take("nats"))
        async with postgres_server(folder) as postgres, parts.running(nats_server_part(nats)), postgres.fresh("agents") as database:
            gateway = GatewayProcess("gateway", configuration(folder, database, nats, certificates, ports), folder / "gateway.log")
            await gateway.start()
            try:
                yield (
                    gateway,
                    await simulated.joined(
                        count, dsn=database.dsn, authority=certificates.authority, folder=folder, ca_file=certificates.ca
                    ),
                )
            finally:
                await gateway.stop()


async def main(count: int) -> None:
    """Starts the servers and measures."""
    trace.setup("bench", endpoint=None)
    log.setup("bench", level="ERROR")
    async with hub(count) as (gateway, agents):
        await asyncio.sleep(_QUIET)
        before = memory(gateway)
        async with simulated.running(agents, gateway.config.tunnel_address):
            await all_online(gateway, count)
            await asyncio.sleep(_QUIET)
            each = (memory(gateway) - before) / count / 1000
            tell("idle_agent", each, 300, 1, f"KB of the gateway's memory (PSS) per idle agent, {count} agents")
            used = processor(gateway)
            await asyncio.sleep(10)
            tell("idle_agents_cpu", (processor(gateway) - used) * 10, 10, 1, f"per cent of a core for {count} idle agents over 10 s")
            times = []
            for _ in range(ROUNDS):
                await asyncio.sleep(_STEADY)
                await gateway.kill()
                started = time.monotonic()
                await gateway.start()
                await all_online(gateway, count)
                times.append(time.monotonic() - started)
            what = f"s until {count} agents are back after kill -9, worst; its start included: {[round(t, 1) for t in times]}"
            tell("agents_back", max(times), 60, ROUNDS, what)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=AGENTS)
    uvloop.run(main(parser.parse_args().count))
