"""Documents that never change, what the server says of itself, and names that no hop could carry."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from datetime import timedelta

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from libs.faults import Exhausted
from libs.rest import Api, Fixed, HttpServer
from libs.rest.tests.library import LIBRARY, Library
from libs.rpc import Pipeline, methods
from libs.rpc.tests.doubles import Users

BODY = b'{"a":"document"}' * 100


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    pipeline = Pipeline(methods(LIBRARY, Library()), authenticate=Users(), registry=CollectorRegistry())
    server = HttpServer(Api(pipeline))
    server.add_fixed("/document", Fixed("application/json", BODY, {"X-More": "1"}))
    server.add_fixed("/small", Fixed("text/plain", b"small"))
    port = await server.start("127.0.0.1", 0, None)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", auto_decompress=False) as made:
        yield made
    await server.drain()


async def test_compressed_for_who_takes_it(session: aiohttp.ClientSession) -> None:
    """The same document, with a weak etag; a cache is told."""
    async with session.get("/document", headers={"Accept-Encoding": "gzip"}) as squeezed:
        raw = await squeezed.read()
        assert (squeezed.headers["Content-Encoding"], gzip.decompress(raw), len(raw) < len(BODY)) == ("gzip", BODY, True)
        assert squeezed.headers["Vary"] == "Accept-Encoding"
    async with session.get("/document", headers={"Accept-Encoding": "identity"}) as plain:
        assert ("Content-Encoding" in plain.headers, await plain.read(), plain.headers["X-More"]) == (False, BODY, "1")
        assert squeezed.headers["ETag"] == f"W/{plain.headers['ETag']}"
    async with session.get("/small", headers={"Accept-Encoding": "gzip"}) as small:
        assert ("Content-Encoding" in small.headers, await small.read()) == (False, b"small")


async def test_not_sent_twice(session: aiohttp.ClientSession) -> None:
    """304 for the etag of either form; another etag gets the document; HEAD gets the headers."""
    async with session.get("/document", headers={"Accept-Encoding": "gzip"}) as first:
        etag = first.headers["ETag"]
    for given in (etag, etag.removeprefix("W/"), f'"other", {etag}'):
        async with session.get("/document", headers={"If-None-Match": given}) as again:
            assert (again.status, await again.read(), again.headers["ETag"].strip("W/")) == (304, b"", etag.strip("W/"))
    async with session.get("/document", headers={"If-None-Match": '"other"'}) as other:
        assert other.status == 200
    async with session.head("/document", headers={"Accept-Encoding": "identity"}) as head:
        assert (head.status, head.headers["Content-Length"], head.headers["Server"]) == (200, str(len(BODY)), "kubegems")


async def test_an_address_gets_so_many() -> None:
    """Documents draw on their address as unknown paths do; a probe, whose address may be shared, is always answered."""

    def limit(_address: str) -> None:
        raise Exhausted("enough", retry_after=timedelta(seconds=3))

    async def alive() -> tuple[int, dict[str, str], bytes]:
        return 200, {}, b"{}"

    pipeline = Pipeline(methods(LIBRARY, Library()), authenticate=Users(), registry=CollectorRegistry())
    server = HttpServer(Api(pipeline, limit=limit))
    server.add_fixed("/document", Fixed("application/json", BODY))
    server.add_document("/healthz", alive)
    port = await server.start("127.0.0.1", 0, None)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as made:
        async with made.get("/document") as refused:
            error = (await refused.json())["error"]
        assert (refused.status, refused.headers["Retry-After"], error["status"]) == (429, "3", "RESOURCE_EXHAUSTED")
        assert error["details"][-1]["requestId"] == refused.headers["kubegems-request-id"]
        async with made.get("/healthz") as probe:
            assert probe.status == 200
    await server.drain()


async def test_a_line_break_in_a_path_is_ours_to_refuse(session: aiohttp.ClientSession) -> None:
    """The standard error body, and not the library's page."""
    async with session.get("/v1/shelves/1%0A2/books/2") as answer:
        assert (answer.status, (await answer.json())["error"]["status"]) == (400, "INVALID_ARGUMENT")


async def test_an_idempotency_key_is_printable(session: aiohttp.ClientSession) -> None:
    """Another would not come over the next hop."""
    for key, status in (("größe", 400), ("a\tb", 400), ("a b", 401)):
        async with session.get("/v1/shelves/1/books/2", headers={"Idempotency-Key": key}) as answer:
            assert answer.status == status, key
