"""All forms of bindings and bodies, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from google.api import annotations_pb2, http_pb2
from prometheus_client import CollectorRegistry

from libs.faults import Exhausted
from libs.rest import streams
from libs.rest.binding import bindings
from libs.rest.cors import Cors
from libs.rest.tests.library import LIBRARY, RPCS, UPLOAD_BYTES, Book, Served, served
from libs.rpc import Call, Pipeline, Refused
from libs.rpc.registry import bind
from libs.rpc.tests.doubles import Users

BOOK = "/v1/shelves/1/books/2"


@pytest.fixture
async def shop() -> AsyncGenerator[Served, None]:
    async with served(cors=Cors(["https://console.example.com"])) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{BOOK}:part", {"name": "part", "etag": "3"}),
        (f"{BOOK}/titles", ["a", "b"]),
        (f"{BOOK}/pages", "7"),
    ],
)
async def test_a_field_of_the_reply_is_the_answer(shop: Served, path: str, body: Any) -> None:
    """`response_body`: a message with its etag, a list, a 64-bit number."""
    status, headers, raw = await shop.get(path)
    assert (status, json.loads(raw)) == (200, body)
    assert headers.get("ETag") == ('"3"' if "part" in path else None)


async def test_a_method_that_will_go_says_so(shop: Served) -> None:
    """Since when and until when, in every answer of it, good and bad; other methods say nothing."""
    for path, status in ((f"{BOOK}/titles", 200), (f"{BOOK}/titles?nope=1", 400)):
        got, headers, _ = await shop.get(path)
        assert (got, headers["Deprecation"], headers["Sunset"]) == (status, "@1772323200", "Mon, 01 Mar 2027 00:00:00 GMT")
    assert "Deprecation" not in (await shop.get(BOOK))[1]


async def test_a_raw_field_of_the_reply_is_the_answer(shop: Served) -> None:
    """An HttpBody in a field goes out as it is."""
    status, headers, raw = await shop.get(f"{BOOK}/raw")
    assert (status, headers["Content-Type"], raw) == (200, "text/plain", b"raw bytes")


async def test_a_field_of_each_item_is_the_event(shop: Served) -> None:
    """`response_body` of a stream is the field of each of its items."""
    _, _, raw = await shop.get(f"{BOOK}:tail")
    assert [json.loads(line) for line in raw.splitlines()] == [{}, {"pages": "1"}, {"pages": "2"}]


@pytest.mark.parametrize(("path", "sent", "want"), [("titles", ["x", "y"], ["x", "y"]), ("pages", "12", 12), ("pages", 12, 12)])
async def test_any_field_may_be_the_body(shop: Served, path: str, sent: Any, want: Any) -> None:
    """A list and a number are bodies like a message is."""
    assert (await shop.get(f"{BOOK}/{path}", "PUT", json=sent))[0] == 200
    found = getattr(shop.library.asked[-1], path)
    assert (list(found) if isinstance(want, list) else found) == want
    status, _, raw = await shop.get(f"{BOOK}/{path}", "PUT", json={"a": 1})
    assert (status, path in json.loads(raw)["error"]["message"]) == (400, True)


async def test_custom_methods_and_wildcards(shop: Served) -> None:
    """A method of one's own, any method at all, `**` over no, one and many segments, and a segment nobody keeps."""
    assert (await shop.get(BOOK, "REPORT"))[0] == 200
    for method in ("GET", "PUT", "POST", "DELETE", "PATCH"):
        assert (await shop.get("/v1/rest/a/b:any", method))[0] == 200
        assert shop.library.asked[-1].name == "a/b"
    for path in ("/v1/x/any", "/v1/y/any/a", "/v1/z/any/a/b/c"):
        assert (await shop.get(path))[0] == 200
        assert shop.library.asked[-1].name == path.partition("any")[2].strip("/")
    status, headers, _ = await shop.get(BOOK, "DELETE")
    assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS, REPORT")


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ({}, "no pattern"),
        ({"custom": {"kind": "get it", "path": "/x"}}, "no HTTP method"),
        ({"put": "/x", "body": "part.name"}, "of the message itself"),
        ({"put": "/x", "body": "nope"}, "no field nope"),
        ({"get": "/x", "response_body": "nope"}, "no field nope"),
        ({"get": "/x", "body": "*"}, "has no body"),
        ({"get": "/{titles}"}, "no single value"),
    ],
)
def test_a_binding_that_cannot_work_is_refused_at_start(binding: Any, words: str) -> None:
    """Each mistake in an annotation stops the service and is named."""
    method = bind(LIBRARY.methods_by_name["Get"], None)
    options = type(method.descriptor.GetOptions())()
    options.CopyFrom(method.descriptor.GetOptions())
    options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(**binding))

    class Other:
        """The descriptor with other options."""

        def __getattr__(self, name: str) -> Any:
            return getattr(method.descriptor, name)

        def GetOptions(self) -> Any:
            return options

    other: Any = type(method)(Other(), method.rule, method.request_class, method.response_class, None)  # type: ignore[arg-type] # a method without a handler is enough
    with pytest.raises(Refused, match=words):
        list(bindings(other))


def test_every_binding_of_the_library_is_taken() -> None:
    """The control: each of them parses."""
    assert all(list(bindings(bind(LIBRARY.methods_by_name[name], None))) for name, *_ in RPCS)


async def test_a_raw_body_comes_in_as_it_is(shop: Served) -> None:
    """HttpBody in: bytes and content type; 413 over the method's own limit, whether it is announced or not."""
    status, _, _ = await shop.get("/v1/files/a/b", "PUT", data=b"\x00\xff", headers={"Content-Type": "image/png"})
    assert status == 200
    asked = shop.library.asked[-1]
    assert (asked.name, asked.raw.content_type, asked.raw.data) == ("files/a/b", "image/png", b"\x00\xff")

    async def unannounced() -> AsyncGenerator[bytes, None]:
        for _ in range(11):
            yield b"x" * 100

    for body in (b"x" * 1001, unannounced()):
        status, _, raw = await shop.get("/v1/files/a", "PUT", data=body)
        assert (status, "REQUEST_TOO_LARGE" in raw.decode()) == (413, True)


async def test_an_upload_streams_in_with_back_pressure(shop: Served) -> None:
    """While the handler does not take more, no more than the socket's and the server's buffers is taken off the client."""
    shop.library.pace = asyncio.Event()
    taken = 0

    async def body() -> AsyncGenerator[bytes, None]:
        nonlocal taken
        for _ in range(112):
            taken += 65536
            yield b"x" * 65536

    task = asyncio.create_task(shop.get("/v1/files/big:upload", "POST", data=body()), name="upload")
    before = -1
    while taken != before or not taken:  # until nothing moves any more
        before = taken
        await asyncio.sleep(0.1)
    assert shop.library.received <= 512 * 1024
    assert taken < 112 * 65536, "the client could send all of it while nobody took it"
    shop.library.pace.set()
    status, _, raw = await task
    assert (status, json.loads(raw)["pages"]) == (200, str(112 * 65536))


async def test_an_upload_is_bounded_and_needs_rights(shop: Served) -> None:
    """Over its size 413, without a sign-in 401; an empty one is an upload too."""
    large = io.BytesIO(b"x" * (UPLOAD_BYTES + 1))
    assert (await shop.get("/v1/files/big:upload", "POST", data=large))[0] == 413
    assert (await shop.get("/v1/files/b:upload", "POST", data=b"x", headers={"Authorization": "Bearer nobody"}))[0] == 401
    shop.library.received = 0
    assert json.loads((await shop.get("/v1/files/b:upload", "POST"))[2])["name"] == "files/b"


async def test_a_download_streams_out_with_back_pressure(shop: Served) -> None:
    """A client that reads nothing stops the handler after the buffers are full; one that goes ends it."""
    shop.library.pieces = 1000
    reader, writer = await asyncio.open_connection("127.0.0.1", shop.port, limit=65536)
    writer.write(b"GET /v1/files/a:download HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert b"200" in head.splitlines()[0]
    assert b"text/x-log" in head
    before = -1
    while shop.library.produced != before:
        before = shop.library.produced
        await asyncio.sleep(0.1)
    assert 1 < before < 500, before
    writer.close()
    await asyncio.wait_for(shop.library.closed.wait(), 1)


async def test_a_download_that_breaks_is_not_taken_for_whole(shop: Served) -> None:
    """Its connection is cut before the last chunk; a whole one ends well."""
    assert len((await shop.get("/v1/files/a:download"))[2]) == 4 * 65536
    shop.library.breaks = True
    with pytest.raises(aiohttp.ClientError):
        await shop.get("/v1/files/a:download")


async def test_gzip_where_it_pays(shop: Served) -> None:
    """Large answers for who takes it; not small ones, not refused ones, never those of a sensitive method."""
    big, small, secret = f"{BOOK}?pages=500", f"{BOOK}?pages=1", f"{BOOK}:secret"
    wants = {"Accept-Encoding": "br, gzip;q=0.8"}
    plain = (await shop.get(big))[2]
    status, headers, raw = await shop.get(big, headers=wants)
    assert (status, headers["Content-Encoding"], headers["ETag"]) == (200, "gzip", 'W/"5"')
    assert gzip.decompress(raw) == plain
    assert len(raw) < len(plain) / 10
    assert "Accept-Encoding" in headers["Vary"]
    assert (await shop.get(big, headers=wants | {"If-None-Match": headers["ETag"]}))[0] == 304
    for path, accepts in ((small, wants), (secret, wants), (big, {"Accept-Encoding": "gzip;q=0"}), (big, {"Accept-Encoding": "br"})):
        assert "Content-Encoding" not in (await shop.get(path, headers=accepts))[1], (path, accepts)


async def test_options_and_cors(shop: Served) -> None:
    """OPTIONS tells the methods to everyone; only a configured origin's page is let in, without credentials."""
    status, headers, raw = await shop.get(BOOK, "OPTIONS")
    assert (status, headers["Allow"], raw) == (204, "GET, HEAD, OPTIONS, REPORT", b"")
    assert (await shop.get("/v1/nowhere", "OPTIONS"))[0] == 404
    asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    _, headers, _ = await shop.get(BOOK, "OPTIONS", headers=asks | {"Origin": "https://console.example.com"})
    assert headers["Access-Control-Allow-Origin"] == "https://console.example.com"
    assert "authorization" in headers["Access-Control-Allow-Headers"]
    assert "GET" in headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in headers
    for origin in ("https://evil.example", "null", "https://console.example.com.evil.example", "http://console.example.com"):
        for method, more in (("OPTIONS", asks), ("GET", {})):
            _, headers, _ = await shop.get(BOOK, method, headers={**more, "Origin": origin})
            assert not [name for name in headers if name.startswith("Access-Control")], origin
            assert "Origin" in headers["Vary"]
    _, headers, _ = await shop.get(BOOK, headers={"Origin": "https://console.example.com", "Authorization": ""})
    assert headers["Access-Control-Allow-Origin"], "a page must be able to read the error that it gets"


@pytest.mark.parametrize("origin", ["*", "null", "console.example.com", "https://a.example/path", "https://A.example"])
def test_an_origin_that_is_none_stops_the_start(origin: str) -> None:
    """No wildcard and no half of a URL is configured by mistake."""
    with pytest.raises(ValueError, match="no origin"):
        Cors([origin])


async def test_head_is_get_without_a_body(shop: Served) -> None:
    """The same headers, the length of what GET would send, and nothing else."""
    _, got, raw = await shop.get(f"{BOOK}?pages=3")
    status, headers, empty = await shop.get(f"{BOOK}?pages=3", "HEAD")
    assert (status, empty, headers["ETag"], headers["Content-Length"]) == (200, b"", got["ETag"], str(len(raw)))
    assert (await shop.get("/v1/files/a:download", "HEAD"))[0] == 405
    big, wants = f"{BOOK}?pages=20000", {"Accept-Encoding": "gzip"}  # written in two parts, and compressed
    asks: list[dict[str, Any]] = [{}, {"headers": wants}]
    for more in asks:
        _, got, raw = await shop.get(big, **more)
        status, headers, empty = await shop.get(big, "HEAD", **more)
        assert (status, empty, headers["Content-Length"]) == (200, b"", str(len(raw)))
        assert [headers.get(name) for name in ("ETag", "Vary", "Content-Encoding")] == [
            got.get(name) for name in ("ETag", "Vary", "Content-Encoding")
        ]
    assert (await shop.get(BOOK))[0] == 200, "the connection is good for more"


async def test_the_client_may_set_a_time_limit(shop: Served) -> None:
    """`Grpc-Timeout` ends a call with 504; one that is none is refused."""
    shop.library.pace = asyncio.Event()
    headers = {"Grpc-Timeout": "50m"}
    status, _, raw = await shop.get("/v1/files/x:upload", "POST", data=b"x", headers=headers)
    assert (status, json.loads(raw)["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
    assert (await shop.get(BOOK, headers={"Grpc-Timeout": "soon"}))[0] == 400


async def test_busy_streams_are_written_in_batches() -> None:
    """Two hundred events that come one by one take a small number of writes; a lone one goes out at once."""

    async def items() -> AsyncGenerator[Any, None]:
        yield None
        for number in range(200):
            yield _book(number)
            await asyncio.sleep(0.0005)

    writes = [chunk async for chunk in streams.chunks(items(), type(_book(0)), streams.NDJSON_FORM) if chunk]
    assert sum(chunk.count(b"\n") for chunk in writes) == 200
    assert len(writes) < 60, len(writes)
    assert writes[0].count(b"\n") == 1


async def test_a_full_batch_and_the_end_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a batch may be gathered, a full one goes out, and so does what is left at the end; none holds more than it may."""
    monkeypatch.setattr(streams, "FLUSH_SECONDS", 3600.0)

    async def items() -> AsyncGenerator[Any, None]:
        yield None
        for number in range(1050):
            yield _book(number)

    writes = [chunk async for chunk in streams.chunks(items(), type(_book(0)), streams.NDJSON_FORM) if chunk]
    assert [chunk.count(b"\n") for chunk in writes] == [250] * 4 + [50]
    assert [int(json.loads(line)["pages"]) for line in b"".join(writes).splitlines()] == list(range(1, 1051))


async def test_a_client_that_does_not_read_holds_the_call_back() -> None:
    """The call runs ahead of the socket by what a box holds, and goes on when some of it has left."""
    made = 0

    async def items() -> AsyncGenerator[Any, None]:
        nonlocal made
        yield None
        for number in range(3000):
            made += 1
            yield _book(number)

    async with aclosing(streams.chunks(items(), type(_book(0)), streams.NDJSON_FORM)) as running:
        assert await anext(running) == b""
        for _ in range(50):
            await asyncio.sleep(0)
        assert made < 550, made
        for _ in range(4):
            await anext(running)
        assert 1000 <= made < 1550, made


async def test_large_items_hold_the_call_back_by_their_bytes() -> None:
    """A client that does not read costs a few MiB and not five hundred of whatever comes; a write holds what fits, at least one."""
    made = 0

    async def items() -> AsyncGenerator[Any, None]:
        nonlocal made
        yield None
        for number in range(40):
            made += 1
            yield Book(pages=number + 1, name="x" * 300_000).SerializeToString()

    async with aclosing(streams.chunks(items(), Book, streams.NDJSON_FORM)) as running:
        assert await anext(running) == b""
        for _ in range(200):
            await asyncio.sleep(0)
        assert made < 20, made
        writes = [chunk async for chunk in running]
    assert {chunk.count(b"\n") for chunk in writes} == {1}
    assert [json.loads(chunk)["pages"] for chunk in writes] == [str(number) for number in range(1, 41)]


async def test_a_fault_behind_a_write_is_told() -> None:
    """A call that fails while its last item is on its way to the client does not look like one that ended well."""
    failing = asyncio.Event()

    async def items() -> AsyncGenerator[Any, None]:
        yield None
        yield _book(1)
        await failing.wait()
        raise Exhausted("enough")

    found = b""
    async with aclosing(streams.chunks(items(), Book, streams.NDJSON_FORM)) as running:
        async for chunk in running:
            found += chunk
            if chunk:
                failing.set()
                for _ in range(5):
                    await asyncio.sleep(0)
    assert [next(iter(json.loads(line))) for line in found.splitlines()] == ["pages", "error"]


async def test_time_that_is_up_while_the_client_does_not_read_is_told(shop: Served) -> None:
    """A stream's deadline ends it by a fault wherever it waits: here the box is full, and the call itself stands still."""
    method = next(m for m in shop.pipeline.methods if m.path.endswith("/Tail"))

    async def endless(_request: Any, _call: Any) -> AsyncGenerator[Any, None]:
        while True:
            yield [_book(number) for number in range(1000)]

    tail = replace(method, handler=endless)
    pipeline = Pipeline([tail], authenticate=Users(), registry=CollectorRegistry())
    call = Call(tail, credential="admin", timeout=0.2)
    items = pipeline.stream(call, tail.request_class(name="shelves/1/books/2"), announce=True)
    async with aclosing(streams.chunks(items, Book, streams.NDJSON_FORM)) as running:
        await anext(running)
        pump = next(task for task in asyncio.all_tasks() if task.get_name() == "rest stream")
        await asyncio.wait([pump], timeout=5)
        lines = b"".join([chunk async for chunk in running]).splitlines()
    assert json.loads(lines[-1])["error"]["status"] == "DEADLINE_EXCEEDED"


def _book(number: int) -> Any:
    return Book(pages=number + 1)
