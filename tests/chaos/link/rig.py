"""The whole platform with a relay between its agent and its hub."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from deploy.local.ports import Ports
from tests.chaos.link.network import network
from tests.chaos.link.relay import Relay, Route
from tests.kit.platform import Platform, platform

CERTIFICATE_SECONDS = 36.0  # an agent's certificate; it is renewed after two thirds
_METRIC = re.compile(r"^kubegems_links_online (\d+)", re.MULTILINE)


@dataclass
class Rig:
    """What runs.

    Attributes:
        platform: hub, member cluster, agent.
        relay: between agent and hub.
        gateways: metrics address of each gateway.
    """

    platform: Platform
    relay: Relay
    gateways: list[str]

    def kill(self, part: str) -> int:
        """SIGKILL; the part is started again at once, however often it died."""
        kept = self.platform.stack.supervisor.kept[part]
        kept.crashes, kept.ready_at = 0, float("-inf")
        return self.platform.kill(part)

    def freeze(self, part: str, *, on: bool) -> None:
        """SIGSTOP or SIGCONT."""
        os.kill(self.platform.pid(part), signal.SIGSTOP if on else signal.SIGCONT)

    async def holders(self) -> int:
        """Tunnels that the gateways hold, together."""
        count = 0
        async with aiohttp.ClientSession() as session:
            for address in self.gateways:
                async with session.get(f"http://{address}/metrics", timeout=aiohttp.ClientTimeout(total=5)) as reply:
                    found = _METRIC.search(await reply.text())
                    count += int(found.group(1)) if found else 0
        return count

    @property
    def tls(self) -> ssl.SSLContext:
        """Trusts the hub."""
        return ssl.create_default_context(cafile=self.platform.endpoints["ca"])


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """Runs all for the length of a block; agents' certificates are short."""
    ports = Ports(documented=False)
    port = {name: ports.take(name) for name in ("tunnel", "enrolment", "nats", "gateway-metrics")}
    async with network() as place:
        relay = Relay(place)
        for route in (
            Route("tunnel", (place.hub, port["tunnel"])),
            Route("enrolment", (place.hub, port["enrolment"])),
            Route("nats", ("127.0.0.1", port["nats"]), inside=False),  # its certificate is checked by address
        ):
            await relay.open(route)
        told = {f"KUBEGEMS_AGENT_{name.upper()}_ADDRESS": f"{host}:{number}" for name, (host, number) in relay.ports.items()}
        told |= {f"KUBEGEMS_GATEWAY_{name.upper()}_ADDRESS": f"{place.hub}:{port[name]}" for name in ("tunnel", "enrolment")}
        told |= {
            "KUBEGEMS_GATEWAY_CERTIFICATE_HOURS": str(CERTIFICATE_SECONDS / 3600),
            "KUBEGEMS_GATEWAY_METRICS_ADDRESS": f"127.0.0.1:{port['gateway-metrics']}",
        }
        try:
            with _environment(told):
                async with platform(folder, jaeger=False, ports={"nats": port["nats"]}) as running:
                    yield Rig(running, relay, [f"127.0.0.1:{port['gateway-metrics']}"])
        finally:
            await relay.close()


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
