"""`/k8s`: what of an API server's answer reaches the client, also when that server is slow, broken or hostile."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from services.agent import proxy
from tests.integration.link.upstream import Came, ok, raw, upstream
from tests.integration.link.world import PODS, World


async def test_a_watch_streams_and_ends_with_its_client(world: World, eventually: Any) -> None:
    """Events pass as they come; when the client goes the upstream request ends too."""

    async def events(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
        await writer.drain()
        await reader.read()

    world.up.answer = events
    wire = await world.wire()
    await wire.send("GET", f"/k8s/clusters/local{PODS}?watch=1", f"Authorization: Bearer {world.token}")
    assert (await wire.head()).status == 200
    assert await asyncio.wait_for(wire.chunk(), 5) == b"one\n"
    wire.close()
    await asyncio.wait_for(world.up.closed.wait(), 5)
    await eventually(lambda: world.rig.journal.records, within=5)
    assert world.rig.journal.records[-1].method == "kubernetes/watch"


async def test_a_quiet_watch_shows_its_head_at_once(world: World) -> None:
    """The head does not wait for the first event."""
    world.up.answer = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", close=False)
    wire = await world.wire()
    await wire.send("GET", f"/k8s/clusters/local{PODS}?watch=1", f"Authorization: Bearer {world.token}")
    assert (await asyncio.wait_for(wire.head(), 3)).status == 200


async def test_head_requests_and_empty_answers(world: World) -> None:
    """HEAD, 204 and 304 have no body and do not hang."""
    world.up.answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", close=False)
    assert (await world.ask("HEAD", PODS)).headers["content-length"] == "50"
    world.up.answer = raw(b"HTTP/1.1 304 Not Modified\r\nEtag: x\r\n\r\n", close=False)
    assert (await world.ask("GET", "/openapi/v2")).status == 304


async def test_a_redirect_is_not_followed(world: World) -> None:
    """7.2.5: the agent sends its credential nowhere else; a redirect within the API is passed on, one elsewhere is an error."""
    async with upstream() as elsewhere:
        away = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}/x\r\nContent-Length: 0\r\n\r\n"
        world.up.answer = raw(away.encode())
        reply = await world.ask("GET", PODS)
        assert (reply.status, "127.0.0.1" in reply.body.decode()) == (503, False)
        world.up.answer = raw(b"HTTP/1.1 301 Moved\r\nLocation: /api/v1/pods/\r\nContent-Length: 0\r\n\r\n")
        reply = await world.ask("GET", PODS)
        assert (reply.status, reply.headers["location"]) == (301, "/k8s/clusters/local/api/v1/pods/")
        assert not elsewhere.came


async def test_answers_headers_that_would_harm_the_hub_are_dropped(world: World) -> None:
    """Cookies, HSTS, hop-by-hop headers and challenges of a cluster do not become the hub's."""
    world.up.answer = raw(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=evil\r\nStrict-Transport-Security: x\r\nConnection: x-hop, close\r\nX-Hop: 1\r\n"
        b"Server: secret-host\r\nAudit-Id: 7\r\nContent-Length: 2\r\n\r\n{}"
    )
    reply = await world.ask("GET", PODS)
    assert (reply.status, reply.headers["audit-id"]) == (200, "7")
    assert not {"set-cookie", "strict-transport-security", "x-hop"} & set(reply.headers)
    assert "secret-host" not in str(reply.headers)


async def test_an_agent_that_passes_everything_on_harms_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the cluster runs its agent too: the hub itself looks at an answer's headers."""
    monkeypatch.setattr(proxy, "reply_headers", lambda raw: tuple((name.decode().lower(), value) for name, value in raw))
    world.up.answer = raw(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=evil\r\nConnection: x-hop\r\nX-Hop: 1\r\nAudit-Id: 7\r\nContent-Length: 2\r\n\r\n{}"
    )
    reply = await world.ask("GET", PODS)
    assert (reply.status, reply.headers["audit-id"]) == (200, "7")
    assert not {"set-cookie", "x-hop"} & set(reply.headers)


async def test_the_agents_own_401_is_not_the_callers(world: World) -> None:
    """When the API server refuses the agent, the caller is not told to sign in again."""
    world.up.answer = raw(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\n{}")
    reply = await world.ask("GET", PODS)
    assert reply.status == 503
    assert "refused its own agent" in reply.json["message"]


async def test_errors_of_the_api_server_are_its_own(world: World) -> None:
    """A 403 of the cluster's RBAC arrives word for word and is audited as a denial."""
    body = b'{"kind":"Status","message":"pods is forbidden: User \\"gems:user:dev\\" cannot list"}'
    world.up.answer = raw(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    reply = await world.ask("GET", PODS)
    assert (reply.status, reply.body) == (403, body)
    assert (world.rig.journal.records[-1].outcome, world.rig.journal.records[-1].code) == ("DENIED", "PERMISSION_DENIED")


@pytest.mark.parametrize(
    "answer",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 999 Odd\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"SSH-2.0-OpenSSH\r\n"],
)
async def test_an_api_server_that_makes_no_sense_is_unavailable(world: World, answer: bytes) -> None:
    """7.2.14: the client gets a Status without host, token or stack, and the tunnel lives on."""
    world.up.answer = raw(answer)
    reply = await world.ask("GET", PODS)
    assert (reply.status, reply.json["kind"]) == (503, "Status")
    assert "127.0.0.1" not in reply.json["message"]
    assert "agents-own-token" not in reply.body.decode()
    world.up.answer = ok
    assert (await world.ask("GET", PODS)).status == 200


async def test_an_answer_that_breaks_off_is_cut(world: World) -> None:
    """A body that is not whole does not look whole."""
    for head in (b"Content-Length: 100", b"Transfer-Encoding: chunked"):
        world.up.answer = raw(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n4\r\nhalf\r\n")
        reply = await world.ask("GET", PODS)
        assert (reply.status, reply.whole) == (200, False)


async def test_an_endless_body_costs_little_while_its_reader_is_stuck(world: World, eventually: Any) -> None:
    """Bounded memory: a reader that takes nothing stops the API server's flood, and small calls pass beside it."""
    sent = 0

    async def endless(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if "limit" in came.line:
            await ok(came, reader, writer)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            await writer.drain()
            sent += 65536

    world.up.answer = endless
    wire = await world.wire()
    wire.reader._limit = 1024  # type: ignore[attr-defined] # the client's own buffer must not swallow it
    await wire.send("GET", f"/k8s/clusters/local{PODS}?watch=1", f"Authorization: Bearer {world.token}")
    last = -1
    while last != sent:
        last = sent
        await asyncio.sleep(0.5)
    assert 0 < sent < 40 << 20  # kernel buffers of three loopback connections, one window, two marks
    assert (await world.ask("GET", f"{PODS}?limit=1")).status == 200
    wire.close()
    await asyncio.wait_for(world.up.closed.wait(), 5)


@pytest.mark.parametrize("length", [b"1", b"5"])
async def test_an_answer_of_another_length_ends_its_connection(world: World, monkeypatch: pytest.MonkeyPatch, length: bytes) -> None:
    """Else what an agent says too much or too little would be read as the next answer, perhaps another user's behind a proxy."""
    monkeypatch.setattr(proxy, "reply_headers", lambda raw: [("content-length", length) for name, _ in raw if name == b"Content-Length"])
    world.up.answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    wire = await world.wire()
    await wire.send("GET", f"/k8s/clusters/local{PODS}", f"Authorization: Bearer {world.token}")
    assert (await wire.head()).status == 200
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(wire.reader.read(), 5)  # it ends
