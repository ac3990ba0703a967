"""`/k8s` against an API server double: who may, what travels, what does not, and what a hostile one can do."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.kube import Connection
from tests.integration.link.client import Reply, Wire
from tests.integration.link.rig import Rig, kubeconfig
from tests.integration.link.upstream import Came, Upstream, ok, raw, upstream
from tests.kit.eventually import timescale

PODS = "/api/v1/namespaces/acme-shop-dev/pods"
OPS = "gems:project:acme/shop:ops"


class World:
    """One cluster named `local` behind a double, one user with a token."""

    def __init__(self, rig: Rig, up: Upstream, token: str) -> None:
        self.rig, self.up, self.token = rig, up, token
        self.wires: list[Wire] = []

    async def wire(self) -> Wire:
        """A new connection."""
        self.wires.append(await Wire.open(self.rig))
        return self.wires[-1]

    async def ask(
        self, method: str, path: str, *headers: str, body: bytes = b"", token: str | None = None, auto_length: bool = True
    ) -> Reply:
        """One request on a connection of its own."""
        wire = await self.wire()
        bearer = f"Authorization: Bearer {self.token if token is None else token}"
        return await wire.ask(method, f"/k8s/clusters/local{path}", bearer, *headers, body=body, auto_length=auto_length)

    async def upgrade(
        self, *headers: str, path: str = f"{PODS}/web/exec?command=sh", method: str = "GET", protocol: str = "websocket"
    ) -> Wire:
        """Asks for an upgrade; the head is not read yet."""
        wire = await self.wire()
        lines = (f"Authorization: Bearer {self.token}", "Connection: Upgrade", f"Upgrade: {protocol}", *headers)
        await wire.send(method, f"/k8s/clusters/local{path}", *lines)
        return wire


@pytest.fixture
async def world(rig: Rig, tmp_path: Path) -> AsyncIterator[World]:
    """The world."""
    async with upstream() as up, rig.agent(str(uuid.uuid4()), kubeconfig(tmp_path / "k", up.url), name="local"):
        rig.journal.records.clear()
        rig.access.ended.clear()
        found = World(rig, up, rig.access.add("dev", OPS))
        yield found
        for wire in found.wires:
            wire.close()


# -- who may


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


# -- what travels


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


@pytest.mark.parametrize(
    "headers",
    [
        ("Impersonate-User: system:admin",),
        ("impersonate-group: system:masters",),
        ("IMPERSONATE-EXTRA-scopes: x",),
        ("Impersonate-Uid: 1",),
        ("Connection: Impersonate-User",),
        ("Connection: keep-alive, impersonate-group",),
    ],
)
async def test_impersonation_headers_are_refused(world: World, headers: tuple[str, ...]) -> None:
    """7.2.1: a client cannot say as whom, nor have our own header dropped as hop-by-hop."""
    reply = await world.ask("GET", PODS, *headers)
    assert (reply.status, reply.json["reason"]) == (403, "Forbidden")
    assert not world.up.came
    assert world.rig.journal.records[-1].outcome == "DENIED"


async def test_headers_that_must_not_travel_do_not(world: World) -> None:
    """Hop-by-hop headers, those named in Connection, front-proxy headers, cookies and method overrides stay here."""
    dropped = (
        "Connection: x-secret-hop", "X-Secret-Hop: 1", "Cookie: session=1", "X-Remote-User: system:admin", "X-Remote-Group: system:masters",
        "X-Forwarded-For: 1.2.3.4", "Forwarded: for=1", "X-HTTP-Method-Override: DELETE", "TE: trailers", "Keep-Alive: 5",
        "Proxy-Authorization: Basic x", "Origin: https://evil.example", "traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    )  # fmt: skip
    assert (await world.ask("GET", PODS, *dropped)).status == 200
    came = world.up.came[0]
    assert came.line.startswith("GET ")
    names = {n.lower() for n, _ in came.headers}
    assert names <= {"host", "authorization", "impersonate-user", "impersonate-uid", "impersonate-group", "traceparent"}
    assert "1" * 32 not in str(came.all("traceparent"))


MALFORMED = {
    "repeated header": ("X-A: 1", "X-A: 2"),
    "repeated content type": ("Content-Type: a/b", "Content-Type: c/d"),
    "folded header": ("X-A: 1\r\n folded",),
    "control character": ("X-A: a\x01b",),
    "space in a name": ("X A: 1",),
    "both lengths": ("Content-Length: 5", "Transfer-Encoding: chunked"),
    "two lengths": ("Content-Length: 5", "Content-Length: 6"),
    "two tokens": ("Authorization: Bearer other",),
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_headers_are_refused(world: World, what: str) -> None:
    """7.2.2: what two parsers could read differently is not passed on."""
    reply = await world.ask("POST", PODS, *MALFORMED[what], auto_length=False)
    assert reply.status in (400, 401)
    assert not world.up.came


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/../v1/secrets", "/api/v1/%2e%2e/secrets", "/api/v1/./pods", "//api/v1/pods", "/api//v1/pods",
        "/api/v1/namespaces/a%2fb/pods",
        "/api/v1/pods\\..", "/api/v1/%5c/pods", "/api/v1/pods%00", "/api/v1/pods%0d%0aX:1", "/api/v1/pods%zz", "/api/v1/%252e%252e/x",
        "/api/v1/p%ffods", "/api/v1/pods#x",
    ],
)  # fmt: skip
async def test_a_path_that_is_not_canonical_is_refused(world: World, path: str) -> None:
    """7.2.3: dots, double slashes, backslashes, encoded slashes and control characters do not pass."""
    reply = await world.ask("GET", path)
    assert reply.status in (400, 404)
    assert not world.up.came


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
async def test_a_method_that_is_no_verb_is_denied(world: World, method: str) -> None:
    """7.2.7: an unknown verb is denied."""
    reply = await world.ask(method, PODS)
    assert reply.status in (400, 403, 404, 405)
    assert not world.up.came


async def test_writes_carry_their_body_exactly(world: World) -> None:
    """Protobuf bodies of typed kubectl writes go through unchanged, by length and in chunks."""
    body = b"k8s\x00" + bytes(range(256)) * 3000
    kind = "Content-Type: application/vnd.kubernetes.protobuf"
    assert (await world.ask("POST", PODS, kind, body=body)).status == 200
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert (await world.ask("POST", PODS, kind, "Transfer-Encoding: chunked", body=chunked, auto_length=False)).status == 200
    assert [c.body == body for c in world.up.came] == [True, True]
    assert world.up.came[0].all("content-type") == ["application/vnd.kubernetes.protobuf"]


async def test_bodies_are_bounded_by_verb(world: World) -> None:
    """7.2.9: a read takes no body, a delete a small one, a write 16 MiB; compressed ones are refused."""
    assert (await world.ask("GET", PODS, body=b"x")).status == 400
    assert (await world.ask("DELETE", f"{PODS}/web", body=bytes((1 << 20) + 1))).status == 400
    assert (await world.ask("POST", PODS, "Content-Length: 17000000", auto_length=False)).status == 400
    assert (await world.ask("POST", PODS, "Content-Encoding: gzip", body=b"x")).status == 400
    chunks = b"10000\r\n%b\r\n" % bytes(65536) * 257 + b"0\r\n\r\n"
    reply = await world.ask("POST", PODS, "Transfer-Encoding: chunked", body=chunks, auto_length=False)
    assert (reply.status, reply.json["reason"]) == (400, "BadRequest")
    assert not world.up.came


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


# -- what a hostile or broken API server can do


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


# -- upgrades

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"


def echo(protocol: bytes) -> Any:
    """Switches and sends back what comes, shouting."""

    async def answer(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH % protocol + b"hello")
        while chunk := await reader.read(65536):
            writer.write(chunk.upper())
            await writer.drain()
        writer.close()

    return answer


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
