"""Requests that mean harm: each gets a bounded answer in the standard form, and the edge goes on answering."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from tests.integration.abuse.conftest import Edge
from tests.kit.eventually import timescale

_TE = b"Transfer-Encoding: chunked"


@pytest.fixture(autouse=True)
async def _still_there(edge: Edge) -> AsyncIterator[None]:
    yield
    await edge.alive()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/v1/tenants/../tenants", 400),
        ("/api/v1/./tenants", 400),
        ("/api/v1//tenants", 400),
        ("//api/v1/tenants", 400),
        ("/api/v1/tenants/", 400),
        ("/api/v1/tenants%2facme", 400),
        ("/api/v1/tenants/%2e%2e/users", 400),
        ("/api/v1/tenants/..%2fusers", 400),
        ("/api/v1/tenants/%252e%252e", 404),
        ("/api/v1/tenants/a%5cb", 400),
        ("/api/v1/tenants/a\\b", 400),
        ("/api/v1/tenants/a%00b", 400),
        ("/api/v1/tenants/a%0d%0ab", 400),
        ("/api/v1/tenants/%ff%fe", 400),
        ("/api/v1/tenants/%zz", 400),
        ("/api/v1/tenants/a;b", 404),
        ("/api/v1/tenants?pageSize=1&pageSize=2", 400),
        ("/api/v1/tenants?pageSize=1&page_size=1", 400),
        ("/api/v1/tenants?filter=%ff", 400),
        ("/api/v1/tenants?pageSize=NaN", 400),
        ("/api/v1/tenants?pageSize=1e400", 400),
        ("/api/v1/tenants?" + "&".join(f"a{n}=1" for n in range(300)), 400),
        ("/API/V1/tenants", 404),
        ("/k8s/../api/v1/tenants", 404),
        ("https://elsewhere.example/api/v1/tenants", 400),
    ],
)
async def test_crooked_targets(edge: Edge, target: str, status: int) -> None:
    """Path tricks, doubled and broken parameters: refused as written, never normalised into something else."""
    reply = await edge.send(edge.get(target))
    assert reply.status == status, reply
    assert isinstance(reply.body, dict)
    if not target.startswith("/k8s"):
        assert reply.body["error"]["code"] == status


@pytest.mark.parametrize("target", [b"/api/v1/tenants\x00", b"/api/v1/\xff\xfe", b"/api/v1/tenants\x7f", b"/api/v1/ten ants"])
async def test_raw_bytes_in_targets(edge: Edge, target: bytes) -> None:
    """Bytes that no target may hold."""
    reply = await edge.send(edge.get(target))
    assert reply.status in (400, 404), reply


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 4", _TE),
        (b"Content-Length: 2", b"Content-Length: 3"),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding : chunked",),
        (b"Content-Length: +2",),
        (b"Content-Length: 0x2",),
        (b"Content-Length: 2, 2",),
        (b"X-Folded: a\r\n b",),
        (b"X-Bare: a\rb",),
        (b"X-Nul: a\x00b",),
        (b"Host: other",),
        (b"Authorization: Bearer other",),
    ],
    ids=lambda lines: b" ".join(lines).decode("latin-1"),
)
async def test_smuggling(edge: Edge, lines: tuple[bytes, ...]) -> None:
    """What two parsers could cut differently is refused, and what hides behind it is not run."""
    hidden = edge.post(b'{"tenantId":"smuggled","tenant":{}}')
    has_length = any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in lines)
    reply = await edge.send(edge.post(b"{}", *lines, length=not has_length) + hidden)
    assert reply.status in (400, 415, 501), reply
    tenants = (await edge.send(edge.get())).body
    assert "smuggled" not in json.dumps(tenants)


async def test_a_chunk_that_lies_about_its_size(edge: Edge) -> None:
    """A broken chunk ends the connection; what follows is no request."""
    hidden = edge.post(b'{"tenantId":"smuggled2","tenant":{}}')
    await edge.send(edge.post(b"5\r\n{}\r\n0\r\n\r\n", _TE, length=False) + hidden)
    assert "smuggled2" not in json.dumps((await edge.send(edge.get())).body)


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"X-Long: " + b"a" * 20_000, 431), (b"Cookie: " + b"a=b; " * 100_000, 431), (b"X-Utf: \xff\xfe", 200)],
    ids=["long", "half a megabyte", "no text"],
)
async def test_huge_headers(edge: Edge, line: bytes, status: int) -> None:
    """A header over 16 KiB ends the connection; strange bytes in one nobody reads do no harm."""
    assert (await edge.send(edge.get("/api/v1/tenants", line))).status in (status, 0 if status == 431 else status)


async def test_many_headers(edge: Edge) -> None:
    """Some hundreds of headers are too many."""
    assert (await edge.send(edge.get("/api/v1/tenants", *(b"X-%d: a" % n for n in range(500))))).status in (400, 431)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 900_000, "no JSON"),
        (b'{"tenant":' * 50_000 + b"1", "no JSON"),
        (b'{"tenantId":"a","tenantId":"b"}', "given twice"),
        (b'{"tenantId":"a","tenant_id":"b"}', "given twice"),
        (b'{"tenantId":NaN}', "NaN"),
        (b'{"tenantId":Infinity}', "Infinity"),
        (b'{"tenantId":"\xff"}', "no JSON"),
        (b'{"tenantId":"\\ud800"}', "half of a character"),
        (b'{"tenantId":"a","tenant":{"displayName":"a\\u0000b"}}', "NUL"),
        (b'{"tenantId":1e999}', "must be a text"),
        (b"\xef\xbb\xbf{}", "no JSON"),
        (b"null", "must be an object"),
        (b'{"tenantId":"a"} {"tenantId":"b"}', "no JSON"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else None,
)
async def test_hostile_json(edge: Edge, body: bytes, words: str) -> None:
    """Endless nesting, doubled keys, numbers that are none, broken text: 400 naming it, quickly."""
    start = time.monotonic()
    reply = await edge.send(edge.post(body))
    assert reply.status == 400, reply
    assert words.lower() in reply.body["error"]["message"].lower()
    assert len(reply.body["error"]["message"]) < 500
    assert time.monotonic() - start < 2 * timescale()


async def test_ten_megabytes_of_brackets(edge: Edge) -> None:
    """Refused by size, before it is parsed or even read to its end."""
    start = time.monotonic()
    reply = await edge.send(edge.post(b"[" * 10_000_000))
    assert reply.status in (413, 0), reply
    assert time.monotonic() - start < 5 * timescale()
    head = edge.post(b"", b"Content-Length: 10000000", length=False)
    assert (await edge.send(head)).reason == "REQUEST_TOO_LARGE"


async def test_a_slow_head_and_a_slow_body_hold_nobody_up(edge: Edge) -> None:
    """A hundred that drip their headers, a hundred that never end their handshake: others are answered, both let go in 10 s."""
    host, _, port = edge.gateway.config.rest_address.rpartition(":")
    shaking = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
    for _, writer in shaking:
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00")  # the begin of a ClientHello
    slow = [await edge.open() for _ in range(100)]
    for _, writer in slow:
        writer.write(b"GET /api/v1/tenants HTTP/1.1\r\nHost: a\r\nX-A: ")
    await edge.alive()

    async def drip(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"a")
            await asyncio.sleep(0.5)

    drips = [asyncio.create_task(drip(writer), name="drip") for _, writer in slow]
    replies = await asyncio.wait_for(asyncio.gather(*(edge.read(reader) for reader, _ in slow)), 15 * timescale())
    assert not any(await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in shaking)), 15 * timescale()))
    for task in drips:
        task.cancel()
    assert {reply.reason for reply in replies} == {"HEAD_TOO_SLOW"}
    for _, writer in (*slow, *shaking):
        writer.close()


async def test_kubernetes_errors_stay_kubernetes_own(edge: Edge) -> None:
    """Under `/k8s` every refusal is a Status, whatever is wrong."""
    for target in ("/k8s/clusters/none/api", "/k8s/clusters/none", "/k8s/nonsense", "/k8s/clusters/a%2fb/api", "/k8s/clusters/../../api"):
        for token in (None, "", "nonsense"):
            reply = await edge.send(edge.get(target, token=token))
            assert (reply.status >= 400, reply.body["kind"]) == (True, "Status"), (target, token, reply)


async def test_cancelled_clients_leave_nothing(edge: Edge) -> None:
    """Clients that go in the middle of their request, or before the answer, by the hundred."""
    for content in (edge.get()[:-10], edge.get(), edge.post(b"{}" * 50, b"Content-Length: 5000", length=False)):
        writers = [(await edge.open())[1] for _ in range(100)]
        for writer in writers:
            writer.write(content)
        await asyncio.sleep(0.05)
        for writer in writers:
            writer.transport.abort()
    guard_open = 0
    async with asyncio.timeout(10):
        while (guard_open := len([w for w in edge.writers if not w.is_closing()])) > 0:
            await asyncio.sleep(0.05)
    assert guard_open == 0
