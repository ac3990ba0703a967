"""One gateway asks another that holds the tunnel: same answers, same principal, same ends; and who may not ask so."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import inventory_service_pb2, tunnel_pb2
from libs import rpc
from libs.crypt.ca import SPIFFE
from libs.faults import Fault, Invalid, PermissionDenied
from libs.rpc.call import Call
from libs.tunnel import Ended, Limits, Reset, StreamEnded
from libs.tunnel.calls import Disconnected
from libs.tunnel.kubernetes import Request
from libs.tunnel.tcp import Connection, client_tls, dial, listen, server_tls
from services.gateway.link import exchange as exchanges
from services.gateway.link import grants, peers
from services.gateway.link.exchange import AccessEnded, Exchange
from services.gateway.link.grants import Principal, ServicePrincipal
from services.gateway.link.links import ClusterOffline, Links
from services.gateway.link.peers import Peers
from services.gateway.link.tunnel import Tunnel
from tests.integration.link.rig import CLOCK, DEV, GET_INVENTORY, Agent, Rig, kubeconfig
from tests.integration.link.upstream import Came, Upstream, upstream

ASKED = inventory_service_pb2.GetInventoryRequest()
WATCH = Request("GET", "/api/v1/pods", "watch=1")
LIFE = 1.0


class Map:
    """Says that one other gateway holds every tunnel."""

    replica = "asking"

    def __init__(self, address: str) -> None:
        self.address = address
        self.holding = f"holding {address}"
        self.others = True
        self.touched: list[str] = []

    def of(self, own: object) -> None:
        """Nobody is told."""

    def touch(self, uid: str) -> None:
        """Kept."""
        self.touched.append(uid)

    def holder(self, uid: str) -> tunnel_pb2.TunnelHolder:
        """The other one, always."""
        return tunnel_pb2.TunnelHolder(replica=self.holding, address=self.address, session="s", number=1)

    def draining(self, replica: str) -> bool:
        """Never."""
        return False


class Asking:
    """A gateway that holds no tunnel.

    Attributes:
        links: its links.
        peers: its connections to the other one.
    """

    def __init__(self, rig: Rig, address: str, *, hub_uid: str = "hub-1", certificate: str = "gateway") -> None:
        self.map = Map(address)
        files = (rig.folder / f"{certificate}.crt", rig.folder / f"{certificate}.key", rig.folder / "ca.crt")
        self.peers = Peers(self.map, lambda: client_tls(*files), hub_uid=hub_uid, limits=Limits(ping_every=0.5, ping_timeout=5))  # type: ignore[arg-type] # three files
        self.links = Links(
            hub_uid=hub_uid, version="1.0", pipeline=rpc.Pipeline([], registry=CollectorRegistry()), allowed=rig._allowed, clock=CLOCK,
            registry=CollectorRegistry(), peers=self.peers,
        )  # fmt: skip


async def ticking(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Events for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"2\r\n.\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.fixture
async def asking(rig: Rig) -> AsyncIterator[Asking]:
    """A gateway beside the rig's, which holds the tunnels."""
    found = Asking(rig, f"127.0.0.1:{rig.port}")
    yield found
    await found.links.close()


@pytest.fixture
async def pair(rig: Rig, tmp_path: Path) -> AsyncIterator[tuple[Agent, Upstream]]:
    """An agent at the rig's gateway, and its API server."""
    async with upstream() as up, rig.agent(str(uuid.uuid4()), kubeconfig(tmp_path / "k", up.url)) as agent:
        yield agent, up


@pytest.fixture
def short_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants live a second."""
    monkeypatch.setattr(grants, "LIFETIME_MILLIS", int(LIFE * 1000))
    monkeypatch.setattr(exchanges, "QUARTER_LIFE", LIFE / 4)


async def test_a_call_is_made_as_the_principal_that_was_named(asking: Asking, pair: tuple[Agent, Upstream]) -> None:
    """Many at once over one connection; each acts as its own user."""
    users = [ServicePrincipal(f"gems:user:u{i}", str(i), DEV.groups) for i in range(50)]
    replies = await asyncio.gather(*(asking.links.call(pair[0].uid, GET_INVENTORY, ASKED, user) for user in users))
    assert [r.inventory.kubernetes_version for r in replies] == [u.user for u in users]
    assert len(asking.peers.connected) == 1


async def test_a_request_carries_the_user_and_its_body(asking: Asking, pair: tuple[Agent, Upstream]) -> None:
    """The API server sees the same request as without a gateway between."""
    agent, up = pair
    request = Request("POST", "/api/v1/namespaces/a/pods", "dryRun=All", (("content-type", b"application/json"),))
    async with await asking.links.kubernetes(agent.uid, request, b"y" * 100_000, DEV) as exchange:
        assert (exchange.status, await exchange.whole(100)) == (200, b"{}")
    (came,) = up.came
    assert (came.line, len(came.body)) == ("POST /api/v1/namespaces/a/pods?dryRun=All HTTP/1.1", 100_000)
    assert (came.all("Impersonate-User"), came.all("Impersonate-Group")) == ([DEV.user], list(DEV.groups))


async def test_faults_of_the_agent_come_through(asking: Asking, pair: tuple[Agent, Upstream]) -> None:
    """With their code and text; a call that takes too long ends at the agent too."""
    cancelled = asyncio.Event()

    async def refuse(call: Call) -> str:
        raise PermissionDenied("not you")

    async def hang(call: Call) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    pair[0].inventory.answer = refuse
    with pytest.raises(Fault, match="not you") as caught:
        await asking.links.call(pair[0].uid, GET_INVENTORY, ASKED, DEV)
    assert caught.value.code is PermissionDenied.code
    pair[0].inventory.answer = hang
    with pytest.raises(Fault):
        await asking.links.call(pair[0].uid, GET_INVENTORY, ASKED, DEV, 0.3)
    async with asyncio.timeout(5):
        await cancelled.wait()


async def test_what_is_not_held_there_is_offline_and_goes_no_further(rig: Rig, asking: Asking) -> None:
    """Also when the holder's own map names the asker: it serves what it holds or refuses."""
    port = await asking.links.serve("127.0.0.1", 0, server_tls(*(rig.folder / n for n in ("gateway.crt", "gateway.key", "ca.crt"))))
    other = Asking(rig, f"127.0.0.1:{port}")
    try:
        async with asyncio.timeout(5):
            with pytest.raises(ClusterOffline, match="cluster east is offline"):
                await other.links.call("nobody", GET_INVENTORY, ASKED, DEV, cluster="east")
        assert not asking.peers.connected
    finally:
        await other.links.close()


async def test_a_gateway_that_cannot_be_reached_is_as_good_as_offline(rig: Rig) -> None:
    """At once, and again without waiting for a dial each time."""
    asking = Asking(rig, "127.0.0.1:1")
    for _ in range(20):
        async with asyncio.timeout(2):
            with pytest.raises(ClusterOffline, match="east"):
                await asking.links.call("nobody", GET_INVENTORY, ASKED, DEV, cluster="east")


@pytest.mark.parametrize("reachable", [True, False])
async def test_nothing_is_kept_of_gateways_that_are_gone(
    rig: Rig, asking: Asking, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    """Each restart gives a gateway another name; what is known of the former ones is forgotten, be they reached or not."""
    monkeypatch.setattr(peers, "_AGAIN_SECONDS", 0.0)
    asking.map.address = f"127.0.0.1:{rig.port if reachable else 1}"
    for number in range(20):
        asking.map.holding = f"start {number}"
        road = await asking.peers.road("any")
        assert (road is not None) is reachable
        if road is not None:
            road.mux.abort("it is killed")
    assert sum(len(kept) for kept in vars(asking.peers).values() if isinstance(kept, dict)) <= 2


async def test_one_dial_serves_all_and_outlives_who_asked_first(asking: Asking, pair: tuple[Agent, Upstream]) -> None:
    """The first one's client goes while the other gateway is dialled: the others get their answers over that connection."""
    calls = [asyncio.create_task(asking.links.call(pair[0].uid, GET_INVENTORY, ASKED, DEV)) for _ in range(5)]
    await asyncio.sleep(0)
    calls[0].cancel()
    replies = await asyncio.gather(*calls[1:])
    assert {r.inventory.kubernetes_version for r in replies} == {DEV.user}
    assert len(asking.peers.connected) == 1


async def test_a_stream_lives_while_the_asker_renews_it(asking: Asking, pair: tuple[Agent, Upstream], short_grants: None) -> None:
    """The asker is asked at half a grant's life; the holder signs the new one."""
    pair[1].answer = ticking
    asked = 0

    async def renew() -> Principal:
        nonlocal asked
        asked += 1
        return DEV

    async with await asking.links.kubernetes(pair[0].uid, WATCH, None, DEV, renew=renew) as watch:
        assert await _lived(watch, LIFE * 3) >= LIFE * 3
    assert asked >= 4


async def test_each_stream_is_renewed_as_its_own_user(asking: Asking, pair: tuple[Agent, Upstream], short_grants: None) -> None:
    """Two users' streams over one connection between gateways: one goes on, and the one that is not renewed ends."""
    pair[1].answer = ticking
    eve = ServicePrincipal("gems:user:eve", "2", DEV.groups)

    async def never() -> Principal:
        await asyncio.Event().wait()
        raise AssertionError

    async def eves() -> Principal:
        return eve

    async with (
        await asking.links.kubernetes(pair[0].uid, WATCH, None, DEV, renew=never) as ends,
        await asking.links.kubernetes(pair[0].uid, WATCH, None, eve, renew=eves) as goes_on,
    ):
        lived = asyncio.create_task(_lived(goes_on, LIFE * 3))
        with pytest.raises(Fault):
            await _lived(ends, LIFE * 3)
        assert await lived >= LIFE * 3


async def test_a_stream_ends_when_the_caller_may_no_longer(asking: Asking, pair: tuple[Agent, Upstream], short_grants: None) -> None:
    """At both ends, and a silent asker is no leave to go on: the holder renews nothing by itself."""
    agent, up = pair
    up.answer = ticking

    async def denied() -> Principal:
        raise PermissionDenied("no")

    async with await asking.links.kubernetes(agent.uid, WATCH, None, DEV, renew=denied) as watch:
        with pytest.raises(AccessEnded):
            await _lived(watch, LIFE * 3)
    async with asyncio.timeout(5):
        await up.closed.wait()

    async def never() -> Principal:
        await asyncio.Event().wait()
        raise AssertionError

    async with await asking.links.kubernetes(agent.uid, WATCH, None, DEV, renew=never) as watch:
        with pytest.raises(Fault):
            await _lived(watch, LIFE * 3)


async def test_a_tunnel_lost_behind_ends_its_streams_alone(rig: Rig, asking: Asking, pair: tuple[Agent, Upstream]) -> None:
    """The stream fails at once with what it would say without a gateway between; the connection between gateways stands."""
    pair[1].answer = ticking
    async with await asking.links.kubernetes(pair[0].uid, WATCH, None, DEV) as watch:
        await watch.read()
        rig.links.disconnect(pair[0].uid, "gone")
        async with asyncio.timeout(2):
            with pytest.raises(Disconnected):
                await _lived(watch, LIFE * 9)
    assert len(asking.peers.connected) == 1


async def test_a_stuck_reader_holds_one_window_at_each_hop(asking: Asking, rig: Rig, pair: tuple[Agent, Upstream]) -> None:
    """A client that reads nothing of an endless body: what the gateways hold for it stays under the window."""

    async def endless(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65536)
            await writer.drain()

    pair[1].answer = endless
    async with await asking.links.kubernetes(pair[0].uid, Request("GET", "/big"), None, DEV) as exchange:
        await asyncio.sleep(0.5)
        (mux,) = asking.peers.connected.values()
        tunnel = rig.links._tunnels[pair[0].uid]
        held = [[s.held for s in m._streams.values()] for m in (mux, tunnel.mux)]
        assert all(0 < sum(one) <= 1024 * 1024 for one in held), held
        assert await exchange.read()


async def test_only_gateways_may_forward(rig: Rig, pair: tuple[Agent, Upstream]) -> None:
    """An agent that names another cluster is refused, whatever it asks; so is a gateway of another hub."""
    uid = str(uuid.uuid4())
    forward = tunnel_pb2.Forward(cluster_uid=pair[0].uid, user="gems:user:admin", groups=["gems:platform:admin"])
    connection = await _greeted(rig, rig.agent_tls(uid)())
    try:
        for opening in (
            tunnel_pb2.StreamHeader(kubernetes=tunnel_pb2.KubernetesHeader(method="GET", path="/version"), forward=forward),
            tunnel_pb2.StreamHeader(call=tunnel_pb2.CallHeader(method="/kubegems.agent.v1.InventoryService/GetInventory"), forward=forward),
            tunnel_pb2.StreamHeader(regrant=tunnel_pb2.Regrant(stream=1), forward=forward),
        ):
            stream = connection.mux.open(opening.SerializeToString(), end=True)
            async with asyncio.timeout(5):
                with contextlib.suppress(Ended):
                    assert await stream.receive() is None
            assert stream.trailer or stream.error
        assert not pair[1].came
    finally:
        connection.mux.abort("done")
    stranger = Asking(rig, f"127.0.0.1:{rig.port}", hub_uid="another")
    with pytest.raises(ClusterOffline):
        await stranger.links.call(pair[0].uid, GET_INVENTORY, ASKED, DEV)


@pytest.mark.parametrize(
    "opening",
    [
        tunnel_pb2.StreamHeader(broker=tunnel_pb2.BrokerHeader()),
        tunnel_pb2.StreamHeader(go_away=tunnel_pb2.GoAway()),
        tunnel_pb2.StreamHeader(kubernetes=tunnel_pb2.KubernetesHeader(method="GET", path="/version")),
    ],
    ids=["the broker", "to go away", "as nobody"],
)
async def test_only_calls_and_requests_as_somebody_are_forwarded(
    asking: Asking, pair: tuple[Agent, Upstream], opening: tunnel_pb2.StreamHeader
) -> None:
    """All else is refused, and its agent hears nothing of it."""
    road = await asking.peers.road(pair[0].uid)
    assert road is not None
    if not opening.HasField("kubernetes"):
        opening.forward.CopyFrom(tunnel_pb2.Forward(cluster_uid=pair[0].uid, user=DEV.user, uid=DEV.uid, groups=DEV.groups))
    stream = road.mux.open(opening.SerializeToString(), end=True)
    async with asyncio.timeout(5):
        with pytest.raises(Ended) as caught:
            await stream.receive()
    assert caught.value.code is Reset.REFUSED
    assert not pair[1].came


async def test_nothing_is_forwarded_before_the_greeting_is_found_good(
    rig: Rig, pair: tuple[Agent, Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another hub's gateway sends along with its greeting gets no grant."""
    signed: list[Any] = []
    sign = Tunnel.sign

    def recorded(tunnel: Tunnel, header: Any, principal: Principal, verbs: Any) -> Any:
        signed.append(header)
        return sign(tunnel, header, principal, verbs)

    monkeypatch.setattr(Tunnel, "sign", recorded)
    opening = tunnel_pb2.StreamHeader(
        kubernetes=tunnel_pb2.KubernetesHeader(method="GET", path="/version"),
        forward=tunnel_pb2.Forward(cluster_uid=pair[0].uid, user="gems:user:admin"),
    ).SerializeToString()
    tls = client_tls(*(rig.folder / name for name in ("gateway.crt", "gateway.key", "ca.crt")))
    for hub_uid, reached in (("another", False), ("hub-1", True)):
        connection = await _dialled(rig, tls)
        connection.mux.hello(tunnel_pb2.Hello(hub_uid=hub_uid).SerializeToString())
        stream = connection.mux.open(opening, end=True)
        with contextlib.suppress(StreamEnded):
            await asyncio.wait_for(stream.receive(), 5)
        assert bool(signed) is reached
        connection.mux.abort("done")


async def test_only_a_gateway_is_asked(rig: Rig) -> None:
    """Whoever answers at the address must prove that it is a gateway, even with a certificate of the hub for that name."""
    rig.pair("msgbus", dns=("gateway.hub.kubegems.internal",), uri=f"{SPIFFE}/hub/msgbus")
    opened: list[bytes] = []

    async def accept(stream: Any, header: bytes) -> None:
        opened.append(header)

    def made(connection: Connection) -> None:
        connection.mux.hello(tunnel_pb2.Hello(hub_uid="hub-1").SerializeToString())

    tls = server_tls(rig.folder / "msgbus.crt", rig.folder / "msgbus.key", rig.folder / "ca.crt")
    server = await listen("127.0.0.1", 0, tls, lambda: Connection(odd=True, accept=lambda _: accept, on_made=made))
    asking = Asking(rig, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(ClusterOffline):
        await asking.links.call("any", GET_INVENTORY, ASKED, DEV)
    server.close()
    assert not opened


async def test_kubernetes_own_users_are_never_named(rig: Rig, asking: Asking, pair: tuple[Agent, Upstream]) -> None:
    """The asker refuses to send them, and the holder to sign for them."""
    for user, groups in (("system:admin", ()), ("gems:user:dev", ("system:masters",))):
        with pytest.raises(Invalid):
            await asking.links.call(pair[0].uid, GET_INVENTORY, ASKED, ServicePrincipal(user, "1", groups))
        road = await asking.peers.road(pair[0].uid)
        assert road is not None
        header = tunnel_pb2.StreamHeader(
            call=tunnel_pb2.CallHeader(method="/kubegems.agent.v1.InventoryService/GetInventory"),
            forward=tunnel_pb2.Forward(cluster_uid=pair[0].uid, user=user, groups=groups),
        )
        stream = road.mux.open(header.SerializeToString(), b"", end=True)
        async with asyncio.timeout(5):
            assert await stream.receive() is None
        assert stream.trailer


async def _greeted(rig: Rig, tls: Any) -> Connection:
    connection = await _dialled(rig, tls)
    connection.mux.hello(tunnel_pb2.Hello(protocols=[2], version="1").SerializeToString())
    await connection.mux.greeted(5)
    return connection


async def _dialled(rig: Rig, tls: Any) -> Connection:
    async def refuse(stream: Any, header: bytes) -> None:
        stream.reset(Reset.REFUSED)

    return await dial(
        "127.0.0.1", rig.port, tls, lambda: Connection(odd=False, accept=lambda _: refuse), server_name="gateway.hub.kubegems.internal"
    )


async def _lived(exchange: Exchange, most: float) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    while loop.time() - started < most and await exchange.read():
        pass
    return loop.time() - started
