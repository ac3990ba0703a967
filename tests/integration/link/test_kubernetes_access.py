"""`/k8s`: who gets in, as whom the request goes out, what ends it, and what audit keeps of it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs.kube import Connection
from tests.integration.link.rig import kubeconfig
from tests.integration.link.world import OPS, PODS, World, echo
from tests.kit.eventually import timescale


@pytest.mark.parametrize("token", ["", "wrong", "token-of-nobody"])
async def test_without_a_good_token_nothing_is_asked(world: World, token: str) -> None:
    """Empty and wrong tokens get the API server's form of 401, and the cluster hears nothing."""
    reply = await world.ask("GET", PODS, token=token)
    assert (reply.status, reply.json["kind"], reply.json["reason"]) == (401, "Status", "Unauthorized")
    assert not world.up.came


async def test_a_token_in_the_query_is_no_token(world: World) -> None:
    """Tokens come in the Authorization header only."""
    wire = await world.wire()
    reply = await wire.ask("GET", f"/k8s/clusters/local{PODS}?access_token={world.token}&token={world.token}")
    assert reply.status == 401


async def test_an_unknown_cluster_and_a_hidden_one_look_alike(world: World) -> None:
    """Whoever may not see a cluster gets the same answer as for one that is not there."""
    stranger = world.rig.access.add("stranger")
    hidden = await world.ask("GET", PODS, token=stranger)
    wire = await world.wire()
    missing = await wire.ask("GET", f"/k8s/clusters/nowhere{PODS}", f"Authorization: Bearer {world.token}")
    assert (hidden.status, missing.status) == (404, 404)
    assert hidden.json["message"].replace("local", "nowhere") == missing.json["message"]


async def test_an_offline_cluster_is_503_at_once(world: World) -> None:
    """The client learns which cluster is offline and when to come back; kubectl is not asked to try again by itself."""
    world.rig.access.clusters["away"] = "no-such-uid"
    wire = await world.wire()
    reply = await wire.ask("GET", f"/k8s/clusters/away{PODS}", f"Authorization: Bearer {world.token}")
    assert (reply.status, reply.json["reason"]) == (503, "ServiceUnavailable")
    assert reply.json["message"].startswith("cluster away is offline")
    assert ("retry-after" in reply.headers, reply.json["details"]["retryAfterSeconds"]) == (False, 5)


async def test_the_request_goes_out_as_the_user_and_nobody_else(world: World) -> None:
    """The agent's credential and the caller's user, uid and groups are on the wire, each once, last; the caller's token is not."""
    reply = await world.ask("GET", f"{PODS}?limit=5", "Accept: application/json", "User-Agent: kubectl/v1", "X-Custom: a")
    assert (reply.status, reply.body) == (200, b"{}")
    came = world.up.came[0]
    assert came.line == f"GET {PODS}?limit=5 HTTP/1.1"
    assert came.all("impersonate-user") == ["gems:user:dev"]
    assert came.all("impersonate-group") == [OPS]
    assert came.all("impersonate-uid") == [str(uuid.uuid5(uuid.NAMESPACE_DNS, "dev"))]
    assert came.all("authorization") == ["Bearer agents-own-token"]
    assert (came.all("user-agent"), came.all("accept"), came.all("x-custom")) == (["kubectl/v1"], ["application/json"], ["a"])
    assert [n.lower() for n, _ in came.headers][-3:] == ["impersonate-user", "impersonate-uid", "impersonate-group"]
    assert world.token not in str(came)


async def test_access_that_ends_ends_open_streams_within_a_second(world: World, eventually: Any) -> None:
    """7.2.13: an exec session and a watch end when the session does, and when a group is lost."""
    loop = asyncio.get_running_loop()
    access = world.rig.access
    take_aways: tuple[Callable[[], None], ...] = (
        lambda: access.ended.add("session-dev"),
        lambda: access.groups.update(dev=("gems:other",)),
    )
    for take_away in take_aways:
        access.ended.clear()
        access.groups["dev"] = (OPS,)
        world.up.answer = echo(b"websocket")
        wire = await world.upgrade()
        assert (await wire.head()).status == 101
        assert await wire.reader.readexactly(5) == b"hello"
        started = loop.time()
        take_away()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(wire.reader.read(), 5)
        assert loop.time() - started < 1.5
        await eventually(lambda: not world.rig.journal.intents, within=2)
        assert (world.rig.journal.records[-1].outcome, world.rig.journal.records[-1].reason) == ("DENIED", "ACCESS_ENDED")


async def test_what_cannot_be_checked_goes_on_for_some_seconds(world: World, eventually: Any) -> None:
    """7.2.13: while nobody can tell whether the caller may, a stream ends within 5 s; a moment's outage breaks nothing."""
    loop, access = asyncio.get_running_loop(), world.rig.access
    world.up.answer = echo(b"websocket")
    wire = await world.upgrade()
    assert (await wire.head()).status == 101
    assert await wire.reader.readexactly(5) == b"hello"
    try:
        access.away = True
        await asyncio.sleep(1.5)
        access.away = False
        await asyncio.sleep(1.0)
        wire.writer.write(b"still")
        assert await asyncio.wait_for(wire.reader.readexactly(5), 5) == b"STILL"
        access.away, started = True, loop.time()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(wire.reader.read(), 10) == b""
        assert loop.time() - started < 5 * timescale()
    finally:
        access.away = False
    await eventually(lambda: not world.rig.journal.intents, within=2)


async def test_an_audit_log_that_is_away_stops_writes_and_not_reads(world: World) -> None:
    """7.2.12: without an intent nothing is changed or run; reads go on."""
    world.rig.journal.away = True
    try:
        assert (await world.ask("POST", PODS, body=b"{}")).status == 503
        assert (await world.ask("GET", "/api/v1/namespaces/x/secrets/y")).status == 503
        assert not world.up.came
        assert (await world.ask("GET", PODS)).status == 200
    finally:
        world.rig.journal.away = False


async def test_the_record_says_who_what_and_how_it_ended(world: World) -> None:
    """Audit holds the class, the verb, the object, the environment and no token."""
    await world.ask("DELETE", f"{PODS}/web")
    record = world.rig.journal.records[-1]
    assert (record.method, record.class_, record.outcome, record.actor) == ("kubernetes/delete", "WRITE", "OK", "users/dev")
    assert record.resources == ("clusters/local", "tenants/acme/projects/shop/environments/dev")
    assert record.scope == "tenants/acme/projects/shop/environments/dev"
    assert record.request["name"] == "web"
    assert world.token not in repr(world.rig.journal.records)


async def test_the_agents_connection_can_be_read(tmp_path: Path) -> None:
    """The double's kubeconfig is one the agent takes, so that the tests above speak of the real thing."""
    connection = await Connection.from_kubeconfig(kubeconfig(tmp_path / "k", "http://127.0.0.1:1"))
    assert await connection.authorization() == "Bearer agents-own-token"
