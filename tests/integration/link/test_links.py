"""Hub and agent over a real mTLS tunnel: who may connect, calls both ways, loss, reconnection, replacement."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kubegems.agent.v1 import desired_state_service_pb2, inventory_service_pb2, tunnel_pb2
from libs.crypt.ca import SPIFFE, Authority
from libs.faults import DeadlineExceeded, Exhausted, Fault, Internal, Invalid, Unavailable
from libs.rpc.call import Call
from libs.tunnel import Ended, Lost, Mux, Reset
from libs.tunnel.tcp import Connection, client_tls, dial
from services.agent import link as agent_link
from services.gateway.link.grants import ServicePrincipal
from services.gateway.link.links import ClusterOffline
from tests.integration.link.rig import CLOCK, DESIRED, DEV, FETCH, GET_INVENTORY, Agent, Rig, kubeconfig

ASK = inventory_service_pb2.GetInventoryRequest()
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(params=["tcp", "websocket"])
async def agent(rig: Rig, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Agent]:
    """An agent without an API server, by either carrier: what is true of one is true of the other."""
    async with rig.agent(str(uuid.uuid4()), kubeconfig(tmp_path / "k", NOWHERE), carrier=request.param) as running:
        yield running


async def test_the_hub_calls_the_agent_as_a_principal(rig: Rig, agent: Agent) -> None:
    """A typed call reaches the agent's servicer, which knows as whom to act."""
    reply = await rig.links.call(agent.uid, GET_INVENTORY, ASK, DEV, 5)
    assert reply.inventory.kubernetes_version == "gems:user:dev"
    other = await rig.links.call(agent.uid, GET_INVENTORY, ASK, ServicePrincipal("gems:service:inventory"), 5)
    assert other.inventory.kubernetes_version == "gems:service:inventory"


async def test_the_agent_calls_the_hub_as_its_certificates_cluster(rig: Rig, agent: Agent) -> None:
    """The hub takes the cluster from the certificate; a large answer crosses whole."""
    request = desired_state_service_pb2.FetchDesiredStateRequest(known_generation=3_000_000)
    reply = await agent.link.call(FETCH, request, 10)
    assert reply.hub_uid == agent.uid
    assert len(reply.objects[0].manifest) == 3_000_000


async def test_faults_cross_with_reason_metadata_and_retry(rig: Rig, agent: Agent) -> None:
    """A fault keeps its code, reason, metadata and retry; a mistake tells nothing of its cause."""
    report, interest = DESIRED.methods_by_name["ReportStatus"], DESIRED.methods_by_name["FetchInterest"]
    with pytest.raises(Unavailable) as away:
        await agent.link.call(report, desired_state_service_pb2.ReportStatusRequest(), 5)
    assert (away.value.message, away.value.metadata, away.value.retry_after) == ("not now", {"what": "status"}, _seconds(7))
    with pytest.raises(Internal) as mistake:
        await agent.link.call(interest, desired_state_service_pb2.FetchInterestRequest(), 5)
    assert "canary" not in str(mistake.value)


async def test_a_deadline_ends_the_call_at_both_ends(rig: Rig, agent: Agent) -> None:
    """A call that takes too long fails in time, and the servicer is cancelled."""
    cancelled = asyncio.Event()

    async def hang(call: Call) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    agent.inventory.answer = hang
    with pytest.raises(DeadlineExceeded):
        await rig.links.call(agent.uid, GET_INVENTORY, ASK, DEV, 0.2)
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_cancelled_caller_cancels_the_servicer(rig: Rig, agent: Agent) -> None:
    """Whoever stops waiting frees the agent."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(call: Call) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    agent.inventory.answer = hang
    calling = asyncio.ensure_future(rig.links.call(agent.uid, GET_INVENTORY, ASK, DEV, 30))
    await asyncio.wait_for(started.wait(), 5)
    calling.cancel()
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_an_offline_cluster_is_said_to_be(rig: Rig) -> None:
    """Nobody waits for a cluster that is away."""
    with pytest.raises(ClusterOffline) as offline:
        await rig.links.call("nobody", GET_INVENTORY, ASK, DEV, 5, cluster="local")
    assert offline.value.message.startswith("cluster local is offline")
    assert (offline.value.reason, offline.value.retry_after) == ("CLUSTER_OFFLINE", _seconds(5))


@pytest.mark.parametrize("user", ["", "dev", "system:admin", "gems:platform:admin", "system:serviceaccount:x:y"])
async def test_without_a_kubegems_user_nothing_is_sent(rig: Rig, agent: Agent, user: str) -> None:
    """There is no default identity."""
    with pytest.raises(Invalid):
        await rig.links.call(agent.uid, GET_INVENTORY, ASK, ServicePrincipal(user), 5)


async def test_too_many_groups_are_a_clear_error(rig: Rig, agent: Agent) -> None:
    """More groups than a request can carry are refused with both numbers."""
    crowd = ServicePrincipal("gems:user:x", "", tuple(f"gems:g:{i}" for i in range(501)))
    with pytest.raises(Invalid, match=r"501 groups.*at most 500"):
        await rig.links.call(agent.uid, GET_INVENTORY, ASK, crowd, 5)
    most = ServicePrincipal("gems:user:x", "", tuple(f"gems:project:{'t' * 40}/{'p' * 40}{i}:reader" for i in range(500)))
    reply = await rig.links.call(agent.uid, GET_INVENTORY, ASK, most, 5)
    assert reply.inventory.kubernetes_version == "gems:user:x"


async def test_readers_fail_fast_and_the_agent_comes_back(rig: Rig, agent: Agent, eventually: Any) -> None:
    """When the tunnel breaks, twenty callers fail at once; the agent dials again by itself and calls work."""

    async def hang(call: Call) -> str:
        await asyncio.Event().wait()
        return ""

    agent.inventory.answer = hang
    waiting = [asyncio.ensure_future(rig.links.call(agent.uid, GET_INVENTORY, ASK, DEV, 60)) for _ in range(20)]
    tunnel = rig.links._tunnels[agent.uid]
    await eventually(lambda: len(agent.link._mux._tasks) == 20 if agent.link._mux else False, within=5)
    tunnel.mux._carrier.abort()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 2)
    assert {type(r).__name__ for r in results} == {"Disconnected"}
    agent.inventory.answer = None
    await eventually(lambda: rig.links.online(agent.uid), within=10)
    assert (await rig.links.call(agent.uid, GET_INVENTORY, ASK, DEV, 5)).inventory.kubernetes_version == "gems:user:dev"
    await eventually(lambda: [c[1] for c in rig.changes if c[0] == agent.uid][-1:] == [True], within=5)


async def test_an_agent_that_is_killed_goes_offline(rig: Rig, tmp_path: Path, eventually: Any) -> None:
    """The hub tells of an agent that came and went."""
    uid = str(uuid.uuid4())
    async with rig.agent(uid, kubeconfig(tmp_path / "k", NOWHERE)):
        assert rig.links.states()[uid] == "2.0"
    await eventually(lambda: not rig.links.online(uid), within=5)
    await eventually(lambda: [c for c in rig.changes if c[0] == uid] == [(uid, True, "2.0"), (uid, False, "2.0")], within=5)


async def test_an_agents_first_call_waits_for_its_tunnel(rig: Rig, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent may call as soon as it was greeted, though the hub is not done with the tunnel yet."""
    number = rig.links._door.number

    async def slow() -> int:
        await asyncio.sleep(0.3)
        return await number()

    monkeypatch.setattr(rig.links._door, "number", slow)  # what the database is asked between greeting and service
    session = agent.link.session
    rig.links.disconnect(agent.uid, "try again")
    async with asyncio.timeout(15):
        while agent.link.session in (None, session) or not agent.link.connected:
            await asyncio.sleep(0)
    answer = await agent.link.call(FETCH, desired_state_service_pb2.FetchDesiredStateRequest(), timeout=10)
    assert answer.hub_uid == agent.uid


async def test_a_renewed_certificate_is_not_held_back_by_what_failed_before(
    rig: Rig, agent: Agent, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    """After many failures the agent waits long; asked to reconnect it dials at once, and the next wait is short again."""
    monkeypatch.setattr("services.agent.link.random.uniform", lambda _low, high: high)
    monkeypatch.setattr(agent_link, "_STEADY_SECONDS", 1e9)
    agent.link._delay = agent_link._LONGEST_DELAY
    rig.links.disconnect(agent.uid, "try again")
    await eventually(lambda: not agent.link.connected, within=5)
    agent.link.reconnect()
    await eventually(lambda: agent.link.connected, within=5)
    assert agent.link._delay == agent_link._FIRST_DELAY


async def test_the_newest_tunnel_wins(rig: Rig, agent: Agent, eventually: Any) -> None:
    """A second tunnel of a cluster takes the first one's place, and no offline is told between."""
    first = rig.links._tunnels[agent.uid]
    connection, hello = await _raw(rig, agent.uid)
    assert hello.session != first.session
    await eventually(lambda: rig.links._tunnels[agent.uid].session == hello.session, within=5)
    await asyncio.wait_for(first.mux.closed(), 5)
    assert all(online for uid, online, _ in rig.changes if uid == agent.uid)
    await eventually(lambda: rig.links._tunnels[agent.uid].session != hello.session, within=15)  # the real agent came back
    await asyncio.wait_for(connection.mux.closed(), 5)


async def test_a_certificate_of_another_ca_is_refused(rig: Rig, tmp_path: Path) -> None:
    """A stranger does not get through the TLS handshake."""
    stranger, pair = Authority.create("stranger", now=CLOCK.now())
    del pair
    stranger.issue("x", now=CLOCK.now(), lifetime=_seconds(3600), uri=f"{SPIFFE}/cluster/x").write(tmp_path, "x")
    tls = client_tls(tmp_path / "x.crt", tmp_path / "x.key", rig.folder / "ca.crt")
    with pytest.raises((OSError, ssl.SSLError, Lost)):
        await _dialled(rig, tls)


@pytest.mark.parametrize("uri", ["", f"{SPIFFE}/hub/worker", f"{SPIFFE}/cluster/", f"{SPIFFE}/cluster/a/b", "spiffe://other/cluster/a"])
async def test_a_certificate_that_names_no_cluster_is_refused(rig: Rig, uri: str) -> None:
    """Only a cluster's certificate makes a tunnel."""
    tls = rig.agent_tls(f"odd-{uuid.uuid4()}", uri=uri)()
    with pytest.raises((OSError, Lost)):
        await _dialled(rig, tls)


async def test_a_revoked_cluster_is_refused_and_dropped(rig: Rig, agent: Agent, eventually: Any) -> None:
    """A cluster that fleet no longer allows cannot connect; a tunnel that stands can be dropped."""
    rig.refused.add(agent.uid)
    assert rig.links.disconnect(agent.uid, "revoked")
    await eventually(lambda: not rig.links.online(agent.uid), within=5)
    with pytest.raises((OSError, Lost)):
        await _raw(rig, agent.uid)
    rig.refused.discard(agent.uid)
    await eventually(lambda: rig.links.online(agent.uid), within=20)


async def test_a_tunnel_ends_with_its_certificate(rig: Rig, eventually: Any) -> None:
    """A certificate that runs out while the tunnel stands ends it."""
    uid = str(uuid.uuid4())
    tls = rig.agent_tls(uid, lifetime=_seconds(2))()
    connection = await _dialled(rig, tls)
    await eventually(lambda: rig.links.online(uid), within=2)
    await asyncio.wait_for(connection.mux.closed(), 10)
    await eventually(lambda: not rig.links.online(uid), within=5)


async def test_an_agent_may_ask_nothing_else_of_the_hub(rig: Rig, agent: Agent) -> None:
    """The hub serves agent.v1 to agents, and no Kubernetes requests or grants."""
    mux = agent.link._mux
    assert mux is not None
    for header in (tunnel_pb2.StreamHeader(kubernetes=tunnel_pb2.KubernetesHeader(path="/api")), tunnel_pb2.StreamHeader()):
        with pytest.raises(Ended) as refused:
            await mux.open(header.SerializeToString(), end=True).receive()
        assert refused.value.code is Reset.REFUSED
    with pytest.raises(Fault) as unknown:
        await agent.link.call(GET_INVENTORY, ASK, 5)
    assert unknown.value.code.name == "UNIMPLEMENTED"


async def test_a_message_over_the_limit_leaves_the_tunnel_alive(rig: Rig, agent: Agent) -> None:
    """17 MiB are refused on their stream; 15 MiB pass."""
    with pytest.raises(Exhausted):
        await agent.link.call(FETCH, desired_state_service_pb2.FetchDesiredStateRequest(known_generation=17 << 20), 30)
    reply = await agent.link.call(FETCH, desired_state_service_pb2.FetchDesiredStateRequest(known_generation=15 << 20), 30)
    assert len(reply.objects[0].manifest) == 15 << 20


async def _dialled(rig: Rig, tls: ssl.SSLContext) -> Connection:
    async def refuse(stream: object, header: bytes) -> None:
        raise AssertionError

    connection = await dial(
        "127.0.0.1", rig.port, tls, lambda: Connection(odd=False, accept=lambda _: refuse), server_name="gateway.hub.kubegems.internal"
    )
    mux: Mux = connection.mux
    mux.hello(tunnel_pb2.Hello(protocols=[1], version="raw").SerializeToString())
    await mux.greeted(5)
    return connection


async def _raw(rig: Rig, uid: str) -> tuple[Connection, tunnel_pb2.Hello]:
    tls = client_tls(rig.folder / f"{uid}.crt", rig.folder / f"{uid}.key", rig.folder / "ca.crt")
    connection = await _dialled(rig, tls)
    return connection, tunnel_pb2.Hello.FromString(await connection.mux.greeted(1))


def _seconds(count: float) -> Any:
    return timedelta(seconds=count)
