"""`/k8s`: what of a request travels to the API server, and what is refused before it does."""

from __future__ import annotations

import pytest

from tests.integration.link.world import PODS, World


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
