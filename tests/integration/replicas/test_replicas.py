"""Several gateways are one hub: every cluster is reached through each, wherever its tunnel is, and moves when one goes."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from tests.integration.replicas.hub import AGENTS, Hub
from tests.kit.data import DatabaseServer
from tests.kit.eventually import eventually, timescale
from tests.kit.freeze import frozen


async def test_agents_spread_and_each_is_reached_through_both(hub: Hub) -> None:
    """Fifty agents, some at each gateway; each answers through both, and the one that forwards counts it."""
    assert len(await hub.holders()) == 2
    before = sum([await gateway.metric("kubegems_links_forwarded_total") for gateway in hub.gateways])
    assert await hub.all_reached()
    assert sum([await gateway.metric("kubegems_links_forwarded_total") for gateway in hub.gateways]) == before + AGENTS
    assert sum([await gateway.metric("kubegems_links_online") for gateway in hub.gateways]) == AGENTS


async def test_bodies_watches_and_upgrades_are_forwarded(hub: Hub) -> None:
    """Through the gateway that does not hold the tunnel: a request body arrives, a watch goes on, raw bytes go both ways."""
    agent = await hub.put_one_at(1)
    posted = await hub.admins[0].call("POST", f"//k8s/clusters/{agent.name}/api/v1/namespaces/default/pods", b"x" * 300_000)
    assert (posted.status, posted.body["body"], posted.body["cluster"]) == (200, "x" * 300_000, agent.uid)
    async with hub.watching(0, agent) as watch:
        for number in (1, 2, 3):
            agent.api.event()
            assert f'"number":{number}'.encode() in await watch.content.readline()
    await eventually(lambda: not agent.api.watches, within=5, what="the watch ended at the cluster when its client went")
    sent = bytes(range(256)) * 4000
    async with hub.upgraded(0, agent) as (reader, writer), asyncio.timeout(20):
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent


@pytest.mark.parametrize("gateway", [0, 1], ids=["forwarded", "direct"])
async def test_a_body_that_breaks_off_is_never_taken_for_whole(hub: Hub, gateway: int) -> None:
    """The client's connection is cut in the middle of the answer: nothing ends it as if all had come."""
    agent = await hub.put_one_at(1)
    user = hub.admins[gateway]
    url = f"{user.base}/k8s/clusters/{agent.name}/torn"
    agent.api.release.clear()
    async with user.session.get(url, headers={"Authorization": f"Bearer {user.token}"}, ssl=user.tls) as reply:
        assert (reply.status, await reply.content.readany()) == (200, b'{"half": ')
        agent.api.release.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            async with asyncio.timeout(10):
                await reply.content.read()


async def test_an_error_of_the_holder_comes_through(hub: Hub) -> None:
    """What the holder refuses reads the same as if the tunnel were here: a cluster that is offline is told as such."""
    agent = await hub.put_one_at(1)
    await agent.stop()
    answers = [await hub.admins[i].call("GET", f"//k8s/clusters/{agent.name}/version") for i in (0, 1)]
    assert [a.status for a in answers] == [503, 503]
    await eventually(lambda: _offline(hub, agent.name), within=5)
    agent.start(hub.addresses)


async def test_a_killed_gateways_clusters_move_and_nothing_is_owned_twice(hub: Hub) -> None:
    """kill -9: within 10 s every agent is at the other gateway and answers there. The killed one comes back to an empty table."""
    victim, survivor = 0, 1
    (row,) = await hub.sql("SELECT holder FROM fleet.clusters WHERE uid = $1", (await hub.put_one_at(victim)).uid)
    holder, moved = row["holder"], (await hub.holders())[row["holder"]]
    started = time.monotonic()
    await hub.gateways[victim].kill()

    async def all_there() -> bool:
        return await hub.gateways[survivor].metric("kubegems_links_online") == AGENTS and all(
            await asyncio.gather(*(hub.reached(survivor, agent) for agent in hub.agents))
        )

    await eventually(all_there, within=10, what=f"{moved} agents moved")
    await eventually(lambda: _all_held_by_another(hub, holder), within=10 * timescale() - (time.monotonic() - started), what="rows moved")
    await hub.gateways[victim].start()
    await eventually(hub.all_reached, within=10, what="reached through both again")
    assert [await g.metric("kubegems_links_online") for g in (hub.gateways[victim], hub.gateways[survivor])] == [0, AGENTS]


async def test_a_gateway_that_stood_still_takes_nothing_back(hub: Hub) -> None:
    """Frozen until its agents have gone and it counts as dead; when it goes on, the other still has every cluster."""
    agent = await hub.put_one_at(0)
    hub.gateways[0].pause()
    try:
        await eventually(lambda: _online_at(hub, 1), within=10, what="moved from a frozen gateway")
        await eventually(lambda: hub.reached(1, agent), within=5)
        await eventually(lambda: _gateways(hub, 1), within=15, what="counts as dead")
    finally:
        hub.gateways[0].resume()
    await eventually(lambda: _gateways(hub, 2), within=10, what="counts again")
    await eventually(lambda: hub.reached(0, agent), within=10, what="reached through it")
    assert [await gateway.metric("kubegems_links_online") for gateway in hub.gateways] == [0, AGENTS]
    assert await hub.all_online()


async def test_the_newest_tunnel_wins_across_gateways(hub: Hub) -> None:
    """A second agent with the same certificate at the other gateway: the first one's session ends, and both reach the new one."""
    agent = await hub.put_one_at(0)
    session = agent.link.session
    first, first_task = agent.link, agent._task
    assert session is not None
    agent.start(hub.addresses, first=hub.gateways[1].config.tunnel_address)
    try:
        await agent.link.wait_connected()
        await eventually(lambda: first.session is None or first.session.id != session.id, within=5, what="the older session ended")
    finally:
        assert first_task is not None
        first_task.cancel()
        await asyncio.wait([first_task])
    await eventually(lambda: hub.reached(0, agent), within=15)
    await agent.stop()
    agent.start(hub.addresses)


async def test_a_session_that_ends_at_one_gateway_ends_streams_at_the_other(hub: Hub) -> None:
    """A watch through one gateway of a cluster at the other ends within a second of a sign-out at that other one."""
    agent = await hub.put_one_at(1)
    guest = await hub.admins[0].sign_in("admin", "correct horse battery")
    user = hub.admins[0]
    async with user.session.get(
        f"{user.base}/k8s/clusters/{agent.name}/api/v1/pods?watch=true", headers={"Authorization": f"Bearer {guest.token}"}, ssl=user.tls
    ) as watch:
        assert watch.status == 200
        await watch.content.readline()
        sessions = (await hub.admins[1].get("/users/admin/sessions"))["sessions"]
        assert (await hub.admins[1].call("DELETE", "/" + sessions[0]["name"])).status < 300
        started = time.monotonic()
        try:
            async with asyncio.timeout(5 * timescale()):
                assert not await watch.content.read()
        except aiohttp.ClientPayloadError:
            pass
        assert time.monotonic() - started < 1.5 * timescale()
    await eventually(lambda: not agent.api.watches, within=2, what="ended at the cluster too")


async def test_streams_end_within_five_seconds_when_nobody_can_tell_rights(hub: Hub, postgres: DatabaseServer) -> None:
    """PostgreSQL stands still: a watch, a forwarded watch and an exec end, whatever gateways still remember; nothing new begins."""
    agent = await hub.put_one_at(1)
    async with hub.watching(0, agent) as forwarded, hub.watching(1, agent) as direct, hub.upgraded(1, agent) as (reader, _):
        with frozen(postgres.process.pid):
            started = time.monotonic()
            for ended in asyncio.as_completed([_to_end(forwarded.content), _to_end(direct.content), _to_end(reader)]):
                await ended
                assert time.monotonic() - started <= 5 * timescale()
            print(f"ended after {time.monotonic() - started:.2f} s of 5 s")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await hub.reached(1, agent)


async def _to_end(stream: aiohttp.StreamReader | asyncio.StreamReader) -> None:
    with suppress(aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(20):
            await stream.read()


async def test_a_cluster_removed_at_one_gateway_loses_its_tunnel_at_the_other(hub: Hub) -> None:
    """Its certificate is revoked: the tunnel ends within five seconds, and stays away."""
    agent = await hub.put_one_at(1)
    await hub.sql("UPDATE fleet.certificates SET revoked = now() WHERE cluster_uid = $1", agent.uid)
    try:
        await eventually(lambda: _offline(hub, agent.name), within=5, what="ended")
        assert (await hub.admins[0].call("GET", f"//k8s/clusters/{agent.name}/version")).status == 503
    finally:
        await hub.sql("UPDATE fleet.certificates SET revoked = NULL WHERE cluster_uid = $1", agent.uid)
        await agent.stop()
        agent.start(hub.addresses)


async def test_work_under_way_keeps_its_audit_record_when_another_gateway_starts(hub: Hub) -> None:
    """What one gateway has begun stays PENDING while another starts, and gets its true outcome."""
    agent = await hub.put_one_at(0)
    await hub.gateways[1].kill()
    path = f"/k8s/clusters/{agent.name}/api/v1/namespaces/default/pods/slow"
    agent.api.release.clear()
    asking = asyncio.create_task(hub.admins[0].call("PATCH", f"/{path}", b"{}", Content_Type="application/merge-patch+json"))
    await eventually(lambda: agent.api.slow, within=10)
    await hub.gateways[1].start()
    await asyncio.sleep(2 * timescale())
    assert await _outcomes(hub, path) == ["PENDING"]
    agent.api.release.set()
    assert (await asking).status == 200
    await eventually(lambda: _is(_outcomes(hub, path), ["OK"]), within=5)


async def test_forwarding_goes_on_while_nats_is_away(hub: Hub) -> None:
    """The last known map is used; agents that reconnect meanwhile are known to the other gateway once NATS is back."""
    agent = await hub.put_one_at(1)
    assert hub.nats.process is not None
    hub.nats.process._signal_group(signal.SIGSTOP)  # SIGSTOP: it stands still, as a broker on a stuck disk does
    try:
        assert await hub.reached(0, agent)
        assert await hub.reached(1, agent)
        await asyncio.sleep(9 * timescale())
        assert await hub.reached(0, agent)
    finally:
        hub.nats.process._signal_group(signal.SIGCONT)
    await eventually(hub.all_reached, within=20, what="whole again")


async def test_a_gateway_that_is_stopped_sends_its_agents_away_first(hub: Hub) -> None:
    """SIGTERM: agents move at once; a call under way ends well, watches end cleanly, and the process ends by itself."""
    agent = await hub.put_one_at(0)
    agent.api.release.clear()
    async with hub.watching(0, agent) as own, hub.watching(1, agent) as other, hub.upgraded(0, agent) as (reader, _):
        asking = asyncio.create_task(hub.admins[1].call("GET", f"//k8s/clusters/{agent.name}/slow"))
        await eventually(lambda: agent.api.slow, within=10)
        hub.gateways[0].terminate()
        await eventually(lambda: hub.at(agent) == 1 and agent.link.connected, within=5, what="moved")
        await eventually(lambda: _online_at(hub, 1), within=5, what="all moved")
        assert await hub.reached(1, agent)
        assert not asking.done()
        agent.api.release.set()
        assert (await asking).status == 200
        for watch in (own, other):
            async with asyncio.timeout(20):
                assert await watch.content.read() == b""
        async with asyncio.timeout(20):
            assert await reader.read() == b""
    process = hub.gateways[0].process
    assert process is not None
    async with asyncio.timeout(25):
        assert await process.wait() == 0
    ended = await hub.sql(
        "SELECT outcome, code, reason FROM audit.events WHERE method = 'kubernetes/exec' AND $1 = ANY(resources)"
        " ORDER BY time DESC LIMIT 1",
        f"clusters/{agent.name}",
    )
    assert [tuple(row) for row in ended] == [("FAILED", "UNAVAILABLE", "GATEWAY_STOPPING")]


async def _gateways(hub: Hub, count: int) -> bool:
    return len(await hub.sql("SELECT id FROM fleet.gateways")) == count


async def _online_at(hub: Hub, gateway: int) -> bool:
    return await hub.gateways[gateway].metric("kubegems_links_online") == AGENTS


async def _offline(hub: Hub, name: str) -> bool:
    (row,) = await hub.sql("SELECT online FROM fleet.clusters WHERE name = $1", name)
    return not row["online"]


async def _all_held_by_another(hub: Hub, holder: str) -> bool:
    holders = await hub.holders()
    return sum(holders.values()) == AGENTS and holder not in holders


async def _outcomes(hub: Hub, path: str) -> list[str]:
    cluster = path.split("/")[3]
    rows = await hub.sql(
        "SELECT outcome FROM audit.events WHERE method = 'kubernetes/patch' AND $1 = ANY(resources)", f"clusters/{cluster}"
    )
    return [row["outcome"] for row in rows]


async def _is(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)
