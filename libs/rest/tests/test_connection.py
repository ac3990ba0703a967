"""Connections: slow ones, too many of them, proxies before them, and what HTTP itself refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from libs.faults import Exhausted
from libs.rest import Api, Guard, HttpServer, connection
from libs.rest.tests.library import HubTls, Served, served
from libs.rpc.addresses import Proxies

_GET = b"GET /v1/shelves/1/books/2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n"


async def _all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end; one that goes on sending to a closed connection gets a reset behind the answer."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            found += piece
    return found


async def _answer(shop: Served, content: bytes, *, drip: bytes = b"", within: float = 5.0) -> tuple[int, dict[str, Any]]:
    """Sends bytes, then dripping ones, and returns the status and the decoded body; 0 for a connection closed without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", shop.port)
    writer.write(content)

    async def dripping() -> None:
        while drip:
            await asyncio.sleep(0.02)
            writer.write(drip)

    task = asyncio.create_task(dripping(), name="drip")
    try:
        raw = await asyncio.wait_for(_all(reader), within)
    finally:
        task.cancel()
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if head else (0, {})


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        (b"nonsense\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (_GET + b"Content-Length: -1\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (_GET + b"X Bad: a\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (_GET + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
        (_GET + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "MALFORMED_REQUEST"),
    ],
    ids=lambda value: value[-30:].decode("latin-1") if isinstance(value, bytes) else str(value),
)
async def test_what_the_library_refuses_is_an_error_as_all_others(request_bytes: bytes, status: int, reason: str) -> None:
    """The standard body with a reason, the connection closed, and nothing of the library's or the client's words in it."""
    async with served(guard=Guard(head_seconds=0.5)) as shop:
        got, body = await _answer(shop, request_bytes)
        assert got == status, body
        assert body["error"]["details"][0]["reason"] == reason
        assert "aaaa" not in str(body)
        assert not shop.library.asked


async def test_a_raw_route_that_breaks_tells_nothing() -> None:
    """An exception outside of the pipeline is INTERNAL with an id, without its text."""
    async with served() as shop:

        async def broken(_request: web.Request) -> web.StreamResponse:
            raise RuntimeError("secret of the house")

        server = HttpServer(Api(shop.pipeline))
        server.add_raw_route("/raw", broken)
        port = await server.start("127.0.0.1", 0, None)
        async with shop.session.get(f"http://127.0.0.1:{port}/raw") as reply:
            body = await reply.json()
        assert (reply.status, body["error"]["status"]) == (500, "INTERNAL")
        assert "secret" not in str(body)
        await server.drain()


@pytest.mark.parametrize(("begin", "drip"), [(b"", b""), (b"GET / HT", b""), (_GET, b"X-A: b\r\n"), (_GET + b"\r\nGET /a", b"a")])
async def test_a_head_that_does_not_come_is_not_waited_for(begin: bytes, drip: bytes) -> None:
    """Nothing, half a line, headers without end, and a dripping second request on the connection: answered 408 and closed."""
    async with served(guard=Guard(head_seconds=0.3)) as shop:
        reader, writer = await asyncio.open_connection("127.0.0.1", shop.port)
        writer.write(begin)
        start = asyncio.get_running_loop().time()

        async def dripping() -> None:
            while drip:
                await asyncio.sleep(0.02)
                writer.write(drip)

        task = asyncio.create_task(dripping(), name="drip")
        raw = await asyncio.wait_for(_all(reader), 5)
        task.cancel()
        writer.close()
        assert b"HTTP/1.1 408" in raw
        assert b"HEAD_TOO_SLOW" in raw
        assert asyncio.get_running_loop().time() - start < 2


async def test_an_idle_connection_is_kept_and_a_long_answer_is_not_cut() -> None:
    """The controls: time without a begun head, or behind one that is answered, does not count."""
    async with served(guard=Guard(head_seconds=0.2)) as shop:
        shop.library.pace = asyncio.Event()
        task = asyncio.create_task(shop.get("/v1/files/a:upload", "POST", data=b"x"), name="long")
        await asyncio.sleep(0.5)
        shop.library.pace.set()
        assert (await task)[0] == 200
        await asyncio.sleep(0.5)
        assert (await shop.get("/v1/shelves/1/books/2"))[0] == 200


@pytest.mark.parametrize("path", ["PUT /v1/files/a", "POST /v1/files/a:upload"])
async def test_a_body_that_does_not_come_is_not_waited_for(path: str) -> None:
    """408 for a body that is announced and not sent, whole or streamed."""
    async with served(body_seconds=0.2) as shop:
        head = path.encode() + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\nContent-Length: 100\r\nConnection: close\r\n\r\nabc"
        status, body = await _answer(shop, head)
        assert (status, body["error"]["details"][0]["reason"]) == (408, "BODY_TOO_SLOW")


async def test_a_strangers_body_is_not_read() -> None:
    """Who is not let in is told so before a byte of its body is waited for."""
    async with served(body_seconds=30.0) as shop:
        head = b"PUT /v1/files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\n"
        status, body = await _answer(shop, head, within=5.0)
        assert (status, body["error"]["status"]) == (401, "UNAUTHENTICATED")


async def test_connections_of_an_address_are_counted() -> None:
    """One too many is sent away with 429; a place that is given up is free again."""
    guard = Guard(per_address=3)
    async with served(guard=guard) as shop:
        held = [await asyncio.open_connection("127.0.0.1", shop.port) for _ in range(3)]
        status, body = await _answer(shop, b"")
        assert (status, body["error"]["details"][0]["reason"]) == (429, "TOO_MANY_CONNECTIONS")
        held[0][1].close()
        await held[0][1].wait_closed()
        while guard.open["127.0.0.1"] >= 3:
            await asyncio.sleep(0.01)
        assert (await shop.get("/v1/shelves/1/books/2"))[0] == 200
        for _, writer in held[1:]:
            writer.close()
    assert not guard.open


def test_the_addresses_of_one_network_are_one_client() -> None:
    """Whoever has one IPv6 address has its /64; an IPv4 address is itself, also in IPv6's clothes. All places come back."""
    guard = Guard(per_address=2)
    for mine in (["2001:db8::1", "2001:db8::2", "2001:db8::3"], ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"]):
        assert [guard.enter(address) for address in mine] == [True, True, False]
        for address in mine:
            guard.leave(address)
    assert [guard.enter(address) for address in ("192.0.2.1", "192.0.2.2", "2001:db8:0:1::1", "2001:db8:0:2::1")] == [True] * 4
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8:0:1::1", "2001:db8:0:2::1"):
        guard.leave(address)
    assert not guard.open


async def _slow(shop: Served, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connections that begin a TLS handshake and never end it."""
    held = [await asyncio.open_connection("127.0.0.1", shop.port) for _ in range(count)]
    for _, writer in held:
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00")
    return held


async def test_a_handshake_that_does_not_end_counts_and_is_not_waited_for(hub_tls: HubTls) -> None:
    """It takes a place of its address from its first packet on; after its time it is closed, and its place is free again."""
    guard = Guard(per_address=3, handshake_seconds=0.5)
    async with served(tls=hub_tls.server, guard=guard) as shop:
        held = await _slow(shop, 3)
        async with asyncio.timeout(5):
            while guard.open["127.0.0.1"] < 3:
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", shop.port, ssl=hub_tls.client, server_hostname="localhost")
        assert b"TOO_MANY_CONNECTIONS" in await asyncio.wait_for(reader.read(), 5)
        writer.close()
        for slow, _ in held:
            assert await asyncio.wait_for(slow.read(), 5) == b""
        async with asyncio.timeout(5):
            while guard.open:
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", shop.port, ssl=hub_tls.client, server_hostname="localhost")
        writer.write(_GET + b"\r\n")
        assert b"200" in await asyncio.wait_for(reader.readline(), 5)
        writer.transport.abort()
        for _, slow_writer in held:
            slow_writer.close()


async def test_far_over_the_bound_there_is_not_even_a_handshake(hub_tls: HubTls, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many connections of an address at most, whatever state they are in."""
    monkeypatch.setattr(connection, "_TOLD", 2)
    guard = Guard(per_address=1, handshake_seconds=10.0)
    async with served(tls=hub_tls.server, guard=guard) as shop:
        held = await _slow(shop, 3)
        async with asyncio.timeout(5):
            while guard.open["127.0.0.1"] < 3:
                await asyncio.sleep(0.01)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", shop.port, ssl=hub_tls.client, server_hostname="localhost")
        assert guard.open["127.0.0.1"] == 3
        for _, writer in held:
            writer.close()
    assert not guard.open, "the end of the server ends handshakes too"


async def test_the_port_is_free_when_the_server_has_ended() -> None:
    """Whoever drains may be followed by another at once, on the same port."""
    async with served() as shop:
        pass
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", shop.port)
    server = HttpServer(Api(shop.pipeline))
    assert await server.start("127.0.0.1", shop.port, None) == shop.port
    with pytest.raises(OSError):
        await HttpServer(Api(shop.pipeline)).start("127.0.0.1", shop.port, None)
    await server.drain()


class _TooOften(Exhausted):
    reason = "RATE_LIMITED"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/nowhere"), ("OPTIONS", "/v1/shelves/1/books/2"), ("DELETE", "/v1/shelves/1/books/2")]
)
async def test_what_becomes_no_call_is_limited_by_address(method: str, path: str) -> None:
    """Unknown paths, OPTIONS and methods that are not served draw on the address too; what becomes a call draws by itself."""
    left = 2

    def limit(address: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooOften(f"too many calls of {address}", retry_after=timedelta(seconds=3))

    async with served(limit=limit) as shop:
        seen = [await shop.get(path, method) for _ in range(3)]
        assert [status == 429 for status, *_ in seen] == [False, False, True]
        assert seen[-1][1]["Retry-After"] == "3"
        assert (await shop.get("/v1/shelves/1/books/2"))[0] == 200


async def test_every_answer_has_an_id_and_every_error_tells_it() -> None:
    """Whatever refuses: the API, the library, the guard, a stream after its begin, a raw route."""
    async with served(guard=Guard(head_seconds=0.3)) as shop:
        for path, method in (("/v1/shelves/1/books/2", "GET"), ("/v1/shelves/1/books/2", "OPTIONS"), ("/v1/nowhere", "GET"), ("//", "GET")):
            status, headers, raw = await shop.get(path, method)
            assert len(headers["kubegems-request-id"]) == 32
            if status >= 400:
                assert json.loads(raw)["error"]["details"][-1]["requestId"] == headers["kubegems-request-id"]
        for content in (b"nonsense\r\n\r\n", b"GET"):  # refused by the library, and by the guard
            _, body = await _answer(shop, content)
            assert len(body["error"]["details"][-1]["requestId"]) == 32


async def test_a_trusted_proxys_connections_are_not_counted_and_its_word_is_taken() -> None:
    """Behind a proxy the client's address is what it says, for every call; from anybody else the header means nothing."""
    for trusted, seen in ((["127.0.0.0/8"], "192.0.2.7"), (["10.0.0.0/8"], "127.0.0.1"), ([], "127.0.0.1")):
        async with served(guard=Guard(per_address=1, proxies=Proxies(trusted))) as shop:
            addresses: list[str] = []
            get = shop.library.Get

            async def noted(request: Any, call: Any, get: Any = get, addresses: list[str] = addresses) -> Any:
                addresses.append(call.address)
                return await get(request, call)

            method = shop.pipeline.method("/kubegems.library.Library/Get")
            object.__setattr__(method, "handler", noted)
            held = await asyncio.open_connection("127.0.0.1", shop.port) if trusted == ["127.0.0.0/8"] else None
            headers = {"Authorization": "Bearer admin", "X-Forwarded-For": "203.0.113.9, 192.0.2.7"}
            async with aiohttp.ClientSession() as session, session.get(f"{shop.base}/v1/shelves/1/books/2", headers=headers) as reply:
                assert reply.status == 200
            assert addresses == [seen]
            if held:
                held[1].close()


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "", "10.0.0.1"),
        ("192.0.2.1", "10.9.9.9", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "192.0.2.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "nonsense, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1:4711", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8::5]:4711", "2001:db8::5"),
        ("2001:db8:1::1", "192.0.2.1", "192.0.2.1"),
        ("::ffff:10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", ",".join(["192.0.2.1"] * 10_000), "192.0.2.1"),
    ],
)
def test_the_clients_address_is_read_from_the_right(peer: str, forwarded: str, client: str) -> None:
    """What the last trusted proxy saw; what the client itself wrote to the left of it is not believed."""
    assert Proxies(["10.0.0.0/8", "2001:db8:1::/48"]).client(peer, forwarded) == client


def test_a_network_that_is_none_stops_the_start() -> None:
    """A typing mistake must not become trust in nobody, or in everybody."""
    with pytest.raises(ValueError):
        Proxies(["10.0.0.0/8", "proxy.example"])
