"""The whole platform with two gateways, and a relay between its agent and them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from deploy.local import health
from deploy.local.part import Part
from deploy.local.ports import Ports
from deploy.local.process import Command
from tests.chaos.link.network import network
from tests.chaos.link.relay import Relay, Route
from tests.kit.platform import Platform, platform

SECOND = "second-gateway"
_SECOND = tuple(f"second {listener}" for listener in ("rest", "grpc", "internal", "enrolment", "tunnel", "metrics"))
CERTIFICATE_SECONDS = 36.0  # an agent's certificate; it is renewed after two thirds
_METRIC = re.compile(r"^kubegems_links_online (\d+)", re.MULTILINE)


@dataclass
class Rig:
    """What runs.

    Attributes:
        platform: hub, member cluster, agent.
        relay: between agent and hub.
        gateways: metrics address of each gateway, by part.
        doors: where users find the gateways.
        thawed: when (monotonic) a gateway that stood still went on.
    """

    platform: Platform
    relay: Relay
    gateways: dict[str, str]
    doors: Doors
    thawed: float = float("-inf")

    def kill(self, part: str) -> int:
        """SIGKILL; the part is started again at once, however often it died."""
        kept = self.platform.stack.supervisor.kept[part]
        kept.crashes, kept.ready_at = 0, float("-inf")
        return self.platform.kill(part)

    def freeze(self, part: str, *, on: bool) -> None:
        """SIGSTOP or SIGCONT."""
        os.kill(self.platform.pid(part), signal.SIGSTOP if on else signal.SIGCONT)
        self.thawed = float("inf") if on else time.monotonic()

    async def holders(self, *asked: str) -> list[str]:
        """The gateways, of all or some, that hold the cluster's tunnel; AssertionError when one does not tell."""
        found = []
        async with aiohttp.ClientSession() as session:
            for name in asked or self.gateways:
                try:
                    url = f"http://{self.gateways[name]}/metrics"
                    async with session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as reply:
                        shown = _METRIC.search(await reply.text())
                except (aiohttp.ClientError, TimeoutError) as error:
                    raise AssertionError(f"{name} does not tell: {error!r}") from error
                if shown and int(shown.group(1)):
                    found.append(name)
        return found


@dataclass
class Doors:
    """The hub's REST addresses; users take the next when one does not answer.

    Attributes:
        urls: by gateway.
        closed: gateways whose door is not tried.
        stood_still: address of the one that was closed last.
    """

    urls: dict[str, str]
    closed: set[str] = field(default_factory=set)
    stood_still: str = ""

    def close(self, name: str) -> None:
        """Nobody goes there for now."""
        self.closed, self.stood_still = {name}, self.urls[name]

    def url(self, turn: int) -> str:
        """One that is open."""
        found = [url for name, url in self.urls.items() if name not in self.closed]
        return found[turn % len(found)]


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """Runs all for the length of a block; agents' certificates are short."""
    ports = Ports(documented=False)
    port = {name: ports.take(name) for name in ("tunnel", "enrolment", "nats", "gateway-metrics", *_SECOND)}
    async with network() as place:
        relay = Relay(place)
        for route in (
            Route("tunnel", (place.hub, port["tunnel"])),
            Route("second tunnel", (place.hub, port["second tunnel"])),
            Route("enrolment", (place.hub, port["enrolment"])),
            Route("nats", ("127.0.0.1", port["nats"]), inside=False),  # its certificate is checked by address
        ):
            await relay.open(route)
        told = {f"KUBEGEMS_AGENT_{name.upper()}_ADDRESS": f"{host}:{number}" for name, (host, number) in relay.ports.items()}
        told["KUBEGEMS_AGENT_TUNNEL_ADDRESS"] += "," + told.pop("KUBEGEMS_AGENT_SECOND TUNNEL_ADDRESS")
        told |= {f"KUBEGEMS_GATEWAY_{name.upper()}_ADDRESS": f"{place.hub}:{port[name]}" for name in ("tunnel", "enrolment")}
        told |= {
            "KUBEGEMS_GATEWAY_CERTIFICATE_HOURS": str(CERTIFICATE_SECONDS / 3600),
            "KUBEGEMS_GATEWAY_METRICS_ADDRESS": f"127.0.0.1:{port['gateway-metrics']}",
        }
        try:
            with _environment(told):
                async with platform(folder, jaeger=False, ports={"nats": port["nats"]}) as running:
                    await _second(running, place.hub, port)
                    metrics = {"gateway": port["gateway-metrics"], SECOND: port["second metrics"]}
                    doors = Doors({"gateway": running.endpoints["rest"], SECOND: f"https://127.0.0.1:{port['second rest']}"})
                    yield Rig(running, relay, {name: f"127.0.0.1:{number}" for name, number in metrics.items()}, doors)
        finally:
            await relay.close()


async def _second(running: Platform, host: str, port: Mapping[str, int]) -> None:
    """Another gateway beside the first, told the same but for its listeners."""
    first = Path(f"/proc/{running.pid('gateway')}/environ").read_text()
    env = dict(entry.split("=", 1) for entry in first.split("\0") if entry)
    for listener in ("rest", "grpc", "internal", "enrolment", "metrics"):
        env[f"KUBEGEMS_GATEWAY_{listener.upper()}_ADDRESS"] = f"127.0.0.1:{port[f'second {listener}']}"
    env["KUBEGEMS_GATEWAY_TUNNEL_ADDRESS"] = f"{host}:{port['second tunnel']}"
    command = Command((sys.executable, "-m", "services.gateway"), running.layout.logs / f"{SECOND}.log", env=env)
    ready = f"https://127.0.0.1:{port['second rest']}/readyz"
    part = Part(SECOND, lambda: command, lambda: health.until_answers(ready, running.stack.hub.certificates.ca))
    await running.stack.supervisor.start(part)


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Variables that the starter hands on."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
