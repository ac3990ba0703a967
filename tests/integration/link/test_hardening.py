"""The rules of the proxy that no other test states, acting as another user, and that every rule has its test."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.agent.policy import LocalPolicy, Policy, Rule
from tests.integration.link.rig import Rig, kubeconfig
from tests.integration.link.upstream import upstream
from tests.integration.link.world import OPS, World, world_of
from tests.integration.link.world import PODS as PODS_PATH

ROOT = Path(__file__).parents[3]
_AT_ONCE = 40


@pytest.fixture
async def world(rig: Rig, tmp_path: Path) -> AsyncIterator[World]:
    """The world of a user `boss` that may act as others; there is a user `dev` too."""
    async with world_of(rig, tmp_path, "boss", "gems:platform:admin") as found:
        rig.access.add("dev", OPS)
        rig.access.masters.add("boss")
        yield found
        rig.access.masters.clear()


def test_every_rule_has_its_test() -> None:
    """The table of docs/security.md names a test for each of the 14 rules, and each is there and states that rule."""
    files = {
        **{name: Path(__file__).with_name(f"test_kubernetes_{name}.py") for name in ("access", "requests", "answers", "upgrades")},
        "hardening": Path(__file__),
        "tokens": ROOT / "services/gateway/identity/tests/test_tokens.py",
    }
    rows = re.findall(r"^\| (\d+) \| .* \| (\w+): (.*) \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 15))
    for number, file, named in rows:
        tests = re.findall(r"`(test_\w+)`", named)
        assert tests, number
        for test in tests:
            stated = rf'^(?:async )?def {test}\([^"]*\n    """7\.2\.{number}\b'
            assert re.search(stated, files[file].read_text(), re.MULTILINE), f"rule {number}: {test}"


@pytest.mark.parametrize("named", ["dev", "gems:user:dev"])
async def test_who_may_acts_as_another_user_with_that_users_own_groups(world: World, named: str) -> None:
    """`kubectl --as`: the other's user, uid and groups travel, none of the caller's; the audit names both."""
    assert (await world.ask("GET", PODS_PATH, f"Impersonate-User: {named}")).status == 200
    came = world.up.came[-1]
    assert (came.all("impersonate-user"), came.all("impersonate-group")) == (["gems:user:dev"], [OPS])
    assert came.all("impersonate-uid") == [str(uuid.uuid5(uuid.NAMESPACE_DNS, "dev"))]
    record = world.rig.journal.records[-1]
    assert (record.actor, record.request["as"], record.outcome) == ("users/boss", "users/dev", "OK")


@pytest.mark.parametrize(
    "headers",
    [
        ("Impersonate-User: system:admin",),
        ("Impersonate-User: gems:service:desired-state",),
        ("Impersonate-User: gems:user:",),
        ("Impersonate-User: dev", "Impersonate-Group: gems:platform:admin"),
        ("Impersonate-User: dev", "Impersonate-Extra-scopes: x"),
        ("Impersonate-User: dev", "Impersonate-User: dev"),
        ("Impersonate-User: dev", "Connection: impersonate-user"),
        ("Impersonate-Group: system:masters",),
        ("Impersonate-Uid: 1",),
    ],
)
async def test_who_may_act_as_others_may_not_make_people_up(world: World, headers: tuple[str, ...]) -> None:
    """Neither another kind of user, nor groups, a uid or extra fields, nor twice, nor as hop-by-hop."""
    reply = await world.ask("GET", PODS_PATH, *headers)
    assert reply.status == 403
    assert not world.up.came
    assert world.rig.journal.records[-1].outcome == "DENIED"


async def test_an_unknown_user_cannot_be_acted_as(world: World) -> None:
    """404, and nothing is asked; whoever may not act as others learns nothing of who there is."""
    assert (await world.ask("GET", PODS_PATH, "Impersonate-User: nobody")).status == 404
    world.token = world.rig.access.add("dev", OPS)
    assert [(await world.ask("GET", PODS_PATH, f"Impersonate-User: {u}")).status for u in ("nobody", "boss", "dev")] == [403] * 3
    assert not world.up.came


async def test_acting_as_another_ends_with_the_leave_to(world: World, eventually: Any) -> None:
    """A stream under another's name is broken off within a second when the permission goes."""

    async def forever(_came: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        await reader.read()

    world.up.answer = forever
    wire = await world.wire()
    lines = (f"Authorization: Bearer {world.token}", "Impersonate-User: dev")
    await wire.send("GET", f"/k8s/clusters/local{PODS_PATH}?watch=true", *lines)
    assert (await wire.head()).status == 200
    world.rig.access.masters.clear()
    await eventually(lambda: world.rig.journal.records and world.rig.journal.records[-1].reason == "ACCESS_ENDED", within=1.5)


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example/api/v1/pods",
        "/k8s/clusters/local//evil.example/api",
        "/k8s/clusters/local/\\evil.example/api",
        "http://evil.example/k8s/clusters/local/api",
        "/k8s/clusters/local@evil.example/api",
        "/k8s/clusters/127.0.0.1:1/api",
    ],
)
async def test_no_request_names_where_it_goes(world: World, target: str) -> None:
    """7.2.6: the agent speaks to the one API server of its configuration; nothing in a request chooses another."""
    wire = await world.wire()
    reply = await wire.ask("GET", target, f"Authorization: Bearer {world.token}", "Host: evil.example", "X-Forwarded-Host: evil.example")
    assert reply.status in (400, 404)
    assert not world.up.came


async def test_a_proxy_of_the_environment_gets_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """7.2.6: HTTP_PROXY is for reaching the hub; the API server's credential never goes through it."""
    async with upstream() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert (await world.ask("GET", PODS_PATH)).status == 200
        assert not proxy.came


async def test_requests_at_once_keep_their_own_users(world: World) -> None:
    """7.2.8: impersonation is an argument, never state: of many users at once each request carries its own alone."""
    tokens = {f"user{n}": world.rig.access.add(f"user{n}", f"gems:environment:acme/shop/e{n}:reader") for n in range(_AT_ONCE)}

    async def late(came: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    world.up.answer = late
    replies = await asyncio.gather(*(world.ask("GET", f"{PODS_PATH}/{user}", token=token) for user, token in tokens.items()))
    assert {reply.status for reply in replies} == {200}
    assert len(world.up.came) == _AT_ONCE
    for came in world.up.came:
        user = came.line.split()[1].rpartition("/")[2]
        assert came.all("impersonate-user") == [f"gems:user:{user}"]
        assert came.all("impersonate-group") == [f"gems:environment:acme/shop/e{user.removeprefix('user')}:reader"]


async def test_the_owners_policy_goes_before_the_hubs_word(rig: Rig, tmp_path: Path, eventually: Any) -> None:
    """The agent refuses before it impersonates, says why, and ends what is open when the owner denies it; the rest goes on."""
    policy = LocalPolicy("kubegems-system", Policy())
    async with upstream() as up, rig.agent(str(uuid.uuid4()), kubeconfig(tmp_path / "k", up.url), name="local", policy=policy):
        world = World(rig, up, rig.access.add("dev", OPS))

        async def forever(_came: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
            await reader.read()

        up.answer = forever
        wire = await world.wire()
        await wire.send("GET", f"/k8s/clusters/local{PODS_PATH}?watch=true", f"Authorization: Bearer {world.token}")
        assert (await wire.head()).status == 200
        policy.put(Policy((Rule(users=("dev",), verbs=("watch", "delete")),)))
        await asyncio.wait_for(wire.reader.read(), 5)  # what is left, then the end
        up.answer = None
        asked = len(up.came)
        refused = await world.ask("DELETE", f"{PODS_PATH}/web")
        assert (refused.status, refused.json["reason"]) == (403, "Forbidden")
        assert "the cluster's owner denies this: rule 1" in refused.json["message"]
        assert len(up.came) == asked
        assert (await world.ask("GET", PODS_PATH)).status == 200
        await eventually(lambda: rig.journal.records[-1].outcome == "OK", within=2)
        assert [r.reason for r in rig.journal.records if r.method == "kubernetes/delete"][-1] == "LOCAL_POLICY"
        for left in world.wires:
            left.close()
