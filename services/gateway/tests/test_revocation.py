"""A revoked certificate opens nothing any more: on a whole gateway, tunnel and broker end within five seconds."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from kubegems.agent.v1 import tunnel_pb2
from libs.bus import Bus, subjects
from libs.faults import PermissionDenied
from libs.tunnel import Lost, Reset, websocket
from libs.tunnel.tcp import Connection, client_tls, dial
from libs.tunnel.websocket import SocketConnection
from services.agent.enrolment import Enrolment
from services.agent.identity import Identity, IdentityFiles
from services.agent.link import HUB_NAME
from tests.kit.data import FreshDatabase
from tests.kit.gateway import PASSWORD, Gateway, configuration, running
from tests.kit.nats import NatsServer
from tests.kit.rest import User

SECONDS = 5.0


@pytest.fixture(scope="module")
async def gateway(
    database: FreshDatabase, nats_server: NatsServer, hub_certificates: Certificates, free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Gateway]:  # fmt: skip
    """A gateway whose broker asks it."""
    config = configuration(tmp_path_factory.mktemp("gateway"), database, nats_server, hub_certificates, free_ports)
    async with running(config) as made:
        yield made


@dataclass
class Agent:
    """What an agent, or whoever stole from it, has open."""

    identity: Identity
    enrolment: Enrolment
    connection: Connection
    bus: Bus

    @property
    def in_(self) -> tuple[bool, bool]:
        """Whether tunnel and broker let it in."""
        return self.connection.mux.alive, self.bus.connected


async def enrolled(gateway: Gateway, admin: User, cluster: str, folder: Path) -> tuple[Identity, Enrolment]:
    """A certificate for a new token of a cluster."""
    join = await admin.post(f"/clusters/{cluster}/joinTokens")
    folder.mkdir()
    (folder / "token").write_text(join["token"])
    enrolment = Enrolment(gateway.config.enrolment_address, join["caHash"], IdentityFiles(folder / "state"), version="test")
    return await enrolment.join(folder / "token"), enrolment


async def tunnel(gateway: Gateway, identity: Identity) -> Connection:
    """A greeted tunnel; raises Lost when the hub hangs up instead."""

    async def refuse(stream: Any, _: bytes) -> None:
        stream.reset(Reset.REFUSED, "nothing is served here")

    host, _, port = gateway.config.tunnel_address.rpartition(":")
    tls = client_tls(identity.certificate_file, identity.key_file, identity.ca_file)
    made = await dial(host, int(port), tls, lambda: Connection(odd=False, accept=lambda _: refuse), server_name=HUB_NAME)
    made.mux.hello(tunnel_pb2.Hello(protocols=(2, 1), version="test").SerializeToString())
    await made.mux.greeted(5)
    return made


@contextlib.asynccontextmanager
async def socket(gateway: Gateway, identity: Identity) -> AsyncIterator[SocketConnection]:
    """A greeted tunnel over the edge's WebSocket; raises Lost when the hub hangs up instead."""

    async def refuse(stream: Any, _: bytes) -> None:
        stream.reset(Reset.REFUSED, "nothing is served here")

    url, pair = f"https://{gateway.config.rest_address}", (identity.certificate, identity.key)
    tls = ssl.create_default_context(cafile=str(identity.ca_file))
    made, session = await websocket.dial(url, tls, pair, server_name=HUB_NAME, accept=lambda _: refuse)
    running = asyncio.create_task(made.run(), name="socket")
    try:
        made.mux.hello(tunnel_pb2.Hello(protocols=(2, 1), version="test").SerializeToString())
        await made.mux.greeted(5)
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await session.close()


async def agent(gateway: Gateway, admin: User, cluster: str, folder: Path, nats: NatsServer) -> Agent:
    """An agent with tunnel and broker."""
    identity, enrolment = await enrolled(gateway, admin, cluster, folder)
    tls = (identity.certificate_file, identity.key_file, identity.ca_file)
    bus = await Bus.connect(nats.url, name="agent", tls=tls, inbox_prefix=subjects.inbox(identity.addresses.cluster_uid))
    return Agent(identity, enrolment, await tunnel(gateway, identity), bus)


async def admin_with_cluster(gateway: Gateway, cluster: str) -> User:
    """The admin, who has added a cluster."""
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    await admin.post("/clusters", {"clusterId": cluster, "cluster": {"displayName": cluster}})
    return admin


async def _shut_out(gateway: Gateway, thief: Agent, eventually: Any) -> None:
    await eventually(lambda: thief.in_ == (False, False), within=SECONDS, what="tunnel and broker are closed")
    with pytest.raises((Lost, OSError, TimeoutError)):
        await tunnel(gateway, thief.identity)
    with pytest.raises(PermissionDenied):
        await thief.enrolment.renew(thief.identity)
    await asyncio.sleep(1.0)  # the broker's client dials again within that time
    assert not thief.bus.connected


async def test_joining_anew_revokes_what_was_stolen(gateway: Gateway, nats_server: NatsServer, tmp_path: Path, eventually: Any) -> None:
    """A new token, a new certificate: whoever holds an earlier one of the same cluster is out; another cluster's agent is not."""
    admin = await admin_with_cluster(gateway, "robbed")
    await admin.post("/clusters", {"clusterId": "bystander", "cluster": {"displayName": "Bystander"}})
    bystander = await agent(gateway, admin, "bystander", tmp_path / "bystander", nats_server)
    thief = await agent(gateway, admin, "robbed", tmp_path / "thief", nats_server)
    await eventually(lambda: thief.in_ == (True, True), within=10)
    owner, _ = await enrolled(gateway, admin, "robbed", tmp_path / "owner")
    assert owner.addresses.cluster_uid == thief.identity.addresses.cluster_uid
    await _shut_out(gateway, thief, eventually)
    assert (await tunnel(gateway, owner)).mux.alive
    assert bystander.in_ == (True, True)
    await thief.bus.close()
    await bystander.bus.close()


async def test_a_revoked_tunnel_over_the_websocket_is_out(gateway: Gateway, tmp_path: Path, eventually: Any) -> None:
    """As over TCP: closed within five seconds, and no other opens."""
    admin = await admin_with_cluster(gateway, "edged")
    thief, _ = await enrolled(gateway, admin, "edged", tmp_path / "thief")
    async with socket(gateway, thief) as made:
        assert made.mux.alive
        owner, _ = await enrolled(gateway, admin, "edged", tmp_path / "owner")
        await eventually(lambda: not made.mux.alive, within=SECONDS, what="the thief's tunnel is closed")
    with pytest.raises((Lost, OSError, TimeoutError)):
        async with socket(gateway, thief):
            pass
    async with socket(gateway, owner) as made:
        assert made.mux.alive


async def test_a_removed_cluster_is_out(gateway: Gateway, nats_server: NatsServer, tmp_path: Path, eventually: Any) -> None:
    """Tunnel and broker are closed within five seconds, and stay so."""
    admin = await admin_with_cluster(gateway, "gone")
    thief = await agent(gateway, admin, "gone", tmp_path / "thief", nats_server)
    await eventually(lambda: thief.in_ == (True, True), within=10)
    await admin.delete("/clusters/gone")
    await _shut_out(gateway, thief, eventually)
    await thief.bus.close()
