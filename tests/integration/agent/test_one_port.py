"""One-port mode: an agent that can reach the hub's HTTPS edge and nothing else joins, renews, serves and tells of changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from libs.crypt import ca
from libs.faults import PermissionDenied, Unavailable
from services.agent.enrolment import Enrolment
from services.agent.enrolment_roads import EdgeRoad
from services.agent.identity import IdentityFiles
from services.agent.pinning import PinMismatch
from tests.integration.agent.conftest import LIFE_SECONDS, Hub
from tests.kit.cluster import Cluster
from tests.kit.joining import joining

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
DEAD = {f"KUBEGEMS_AGENT_{name}_ADDRESS": "127.0.0.1:1" for name in ("ENROLMENT", "TUNNEL", "NATS")}


@dataclass(slots=True)
class Proxy:
    """A proxy that takes CONNECT."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
    _open: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        line = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0]
        self.asked.append(line)
        host, _, port = line.split()[1].rpartition(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        self._open += [writer, up_writer]
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer))

    def cut(self) -> None:
        """Drops all connections."""
        for writer in self._open:
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    made = Proxy()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    made.cut()


@pytest.mark.parametrize("behind", ["straight", "proxy"])
async def test_all_goes_through_one_port(  # noqa: PLR0917 -- fixtures
    hub: Hub, cluster: Cluster, proxy: Proxy, tmp_path: Path, free_ports: Ports, eventually: Any, behind: str
) -> None:
    """Every other address is dead and never dialled; tunnel, NATS and a renewed certificate come, by CONNECT too."""
    join = await hub.token(behind)
    assert "ENROLMENT_ADDRESS" not in join["command"]
    account = await cluster.service_account_kubeconfig("gems-agent")
    env = DEAD | ({"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"} if behind == "proxy" else {})
    allowed = {hub.edge_port if behind == "straight" else proxy.port, urlsplit(_server(account)).port or 0}
    ports = (free_ports.take(f"{behind}-grpc"), free_ports.take(f"{behind}-metrics"))
    dialled: set[int] = set()
    async with joining(join["command"], tmp_path / "home", account, ports, **env) as agent:

        async def so_far(check: Any) -> bool:
            dialled.update(agent.dialled())
            return bool(await check())

        async def online() -> bool:
            shown = await hub.admin.get(f"/clusters/{behind}")
            return bool(shown["state"] == "ONLINE")

        await eventually(lambda: so_far(online), within=30, what="online")
        uid = (await hub.admin.get(f"/clusters/{behind}"))["uid"]

        async def told() -> bool:
            return await hub.told(uid) > 0

        await eventually(lambda: so_far(told), within=20, what="changes told over NATS")

        async def renewed() -> bool:
            return "certificate.renewed" in agent.text()

        await eventually(lambda: so_far(renewed), within=LIFE_SECONDS, what="renewed")
        if behind == "proxy":
            before = agent.text().count("bus.connected")
            proxy.cut()

            async def again() -> bool:
                return agent.text().count("bus.connected") > before and await online()

            await eventually(lambda: so_far(again), within=30, what="back after a cut")
    assert dialled == allowed
    if behind == "proxy":
        assert set(proxy.asked) == {f"CONNECT 127.0.0.1:{hub.edge_port} HTTP/1.1"}


def _server(file: Path) -> str:
    return str(yaml.safe_load(file.read_text())["clusters"][0]["cluster"]["server"])


def _enrolment(hub: Hub, folder: Path, pin: str = "", authority: Path | None = None) -> Enrolment:
    good = pin or ca_hash(hub)
    files = IdentityFiles(folder)
    return Enrolment(
        "", good, files, version="test", road=EdgeRoad(f"https://127.0.0.1:1,{hub.gateway.config.public_url}", good, authority)
    )


def ca_hash(hub: Hub) -> str:
    """What the join command pins."""
    return str(Certificates(hub.gateway.config.ca_file.parent).authority.fingerprint)


async def test_enrolment_at_the_edge_trusts_the_pinned_ca_alone(hub: Hub, tmp_path: Path) -> None:
    """Another hash, or an edge that another CA vouches for, gets no token; with the right ones the same token is good."""
    token = (await hub.token("edge-trust"))["token"]
    file = tmp_path / "token"
    file.write_text(token)
    with pytest.raises(PinMismatch):
        await _enrolment(hub, tmp_path / "a", pin="0" * 64).join(file)
    other, _ = ca.Authority.create("other", now=datetime.now(UTC))
    (tmp_path / "other.crt").write_text(other.certificate)
    with pytest.raises(Unavailable):
        await _enrolment(hub, tmp_path / "b", authority=tmp_path / "other.crt").join(file)
    shown = await hub.admin.get("/clusters/edge-trust/joinTokens")
    assert [t["state"] for t in shown["joinTokens"]] == ["UNUSED"]
    joined = await _enrolment(hub, tmp_path / "c").join(file)
    renewed = await _enrolment(hub, tmp_path / "c").renew(joined)
    assert (renewed.addresses.cluster, renewed.not_after >= joined.not_after) == ("edge-trust", True)
    with pytest.raises(PermissionDenied, match="another key"):
        await _enrolment(hub, tmp_path / "thief").join(file)


async def test_enrolment_at_the_edge_is_for_agents(hub: Hub) -> None:
    """No browsers, no other methods, no large bodies, no other content."""
    tls = hub.gateway.nobody.tls
    url, kind = f"{hub.gateway.config.public_url}/enrolment", {"Content-Type": "application/x-protobuf"}
    async with aiohttp.ClientSession() as session:
        for path, headers, body, status in (
            ("Enrol", kind | {"Origin": "https://evil.example"}, b"", 415),
            ("Enrol", {"Content-Type": "application/json"}, b"{}", 415),
            ("Enrol", kind, b"\xff\xff\xff", 400),
            ("Enrol", kind, bytes(100_000), 400),
            ("Enrol", kind, b"", 400),
            ("Other", kind, b"", 404),
        ):
            async with session.post(f"{url}/{path}", data=body, headers=headers, ssl=tls) as answer:
                assert answer.status == status, (path, headers, await answer.read())
