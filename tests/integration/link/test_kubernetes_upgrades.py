"""`/k8s`: exec, attach and port-forward over WebSocket and SPDY, and what is never switched."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.link.upstream import raw
from tests.integration.link.world import PODS, World, echo


@pytest.mark.parametrize(("protocol", "method"), [("websocket", "GET"), ("SPDY/3.1", "POST"), ("SPDY/3.1", "GET")])
async def test_an_upgrade_is_raw_both_ways(world: World, protocol: str, method: str, eventually: Any) -> None:
    """WebSocket and SPDY pass byte for byte after the API server's 101, with its headers; the audit record is SENSITIVE."""
    world.up.answer = echo(protocol.encode())
    wanted = [f"X-Stream-Protocol-Version: v{v}.channel.k8s.io" for v in (5, 4)]
    wire = await world.upgrade(
        "Sec-WebSocket-Key: abc", "Sec-WebSocket-Protocol: v5.channel.k8s.io", *wanted, method=method, protocol=protocol
    )
    head = await wire.head()
    assert (head.status, head.headers["upgrade"], head.headers["sec-websocket-protocol"]) == (101, protocol, "v5.channel.k8s.io")
    assert await wire.reader.readexactly(5) == b"hello"
    payload = b"a" * 3_000_000
    wire.writer.write(payload)
    assert await asyncio.wait_for(wire.reader.readexactly(len(payload)), 15) == payload.upper()
    came = world.up.came[0]
    assert came.all("x-stream-protocol-version") == ["v5.channel.k8s.io", "v4.channel.k8s.io"]
    assert (came.all("upgrade"), came.all("connection"), came.all("impersonate-user")) == ([protocol], ["Upgrade"], ["gems:user:dev"])
    [intent] = world.rig.journal.intents.values()
    assert (intent.method, intent.class_, intent.outcome) == ("kubernetes/exec", "SENSITIVE", "PENDING")
    wire.close()
    await asyncio.wait_for(world.up.closed.wait(), 5)
    await eventually(lambda: not world.rig.journal.intents, within=5)
    assert "command" not in str(world.rig.journal.records[-1].request)


BAD_SWITCHES = {
    "refused": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno!\n",
    "ok instead": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nno!\n",
    "chunked refusal": b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nno!\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", BAD_SWITCHES)
async def test_without_a_101_nothing_is_switched(world: World, what: str) -> None:
    """7.2.4 (CVE-2018-1002105): any other answer is passed on and the upstream connection is closed, never reused."""
    world.up.answer = raw(BAD_SWITCHES[what], close=False)
    wire = await world.upgrade()
    reply = await wire.reply()
    assert (reply.status != 101, reply.body) == (True, b"no!\n")
    await asyncio.wait_for(world.up.closed.wait(), 5)
    wire.writer.write(b"GET /k8s/clusters/local/api/v1/secrets HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(world.up.came) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101\r\nbroken header\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10,
        b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
async def test_a_101_to_something_else_is_refused(world: World, answer: bytes) -> None:
    """An answer to an upgrade that makes no sense ends both sides."""
    world.up.answer = raw(answer)
    wire = await world.upgrade()
    reply = await wire.reply()
    assert (reply.status, reply.json["kind"]) == (503, "Status")


@pytest.mark.parametrize(
    ("path", "protocol", "status"),
    [
        (PODS, "websocket", 400),
        (f"{PODS}?watch=1", "websocket", 400),
        (f"{PODS}/web/log", "websocket", 400),
        (f"{PODS}/web/exec", "h2c", 400),
        (f"{PODS}/web/exec", "tls/1.0", 400),
    ],
)
async def test_only_what_kubernetes_upgrades_is_upgraded(world: World, path: str, protocol: str, status: int) -> None:
    """An upgrade elsewhere, or to another protocol, is refused before the cluster hears of it."""
    wire = await world.upgrade(path=path, protocol=protocol)
    assert (await wire.reply()).status == status
    assert not world.up.came


async def test_a_foreign_origin_cannot_upgrade(world: World) -> None:
    """7.2.11: Origin must be the hub's own, exactly."""
    world.up.answer = echo(b"websocket")
    port = world.rig.edge_port
    for origin, status in (
        ("https://evil.example", 403),
        ("http://localhost", 403),
        (f"https://localhost:{port}.evil", 403),
        ("null", 403),
    ):
        assert (await (await world.upgrade(f"Origin: {origin}")).reply()).status == status
    assert (await (await world.upgrade("Origin: https://localhost")).head()).status == 101
