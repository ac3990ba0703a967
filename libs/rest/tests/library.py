"""A service of all forms that google.api.http has, made from a descriptor, and a server of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry

from kubegems.policy.v1 import policy_pb2
from libs.rest import Api, HttpServer
from libs.rpc import Pipeline, methods
from libs.rpc.tests.doubles import Users

F = descriptor_pb2.FieldDescriptorProto
Rule = policy_pb2.Rule
RULE: dict[str, Any] = {"auth": Rule.USER, "permission": "library.books.get", "audit": Rule.READ, "rate": Rule.READS}
OLD: dict[str, Any] = {"deprecation": {"since": "2026-03-01", "sunset": "2027-03-01"}}
UPLOAD_BYTES = 8 * 1024 * 1024


def _http(**given: Any) -> http_pb2.HttpRule:
    return http_pb2.HttpRule(**given)


def _custom(kind: str, path: str) -> http_pb2.HttpRule:
    return http_pb2.HttpRule(custom=http_pb2.CustomHttpPattern(kind=kind, path=path))


_BOOK = ".kubegems.library.Book"
_ASK = ".kubegems.library.Ask"
_BODY = ".google.api.HttpBody"
RPCS: list[tuple[str, str, http_pb2.HttpRule, dict[str, Any], bool, bool]] = [  # name, output, binding, rule, client stream, server stream
    ("GetPart", _BOOK, _http(get="/v1/{name=shelves/*/books/*}:part", response_body="part"), {}, False, False),
    ("GetTitles", _BOOK, _http(get="/v1/{name=shelves/*/books/*}/titles", response_body="titles"), OLD, False, False),
    ("GetPages", _BOOK, _http(get="/v1/{name=shelves/*/books/*}/pages", response_body="pages"), {}, False, False),
    ("GetRaw", _BOOK, _http(get="/v1/{name=shelves/*/books/*}/raw", response_body="raw"), {}, False, False),
    ("Tail", _BOOK, _http(get="/v1/{name=shelves/*/books/*}:tail", response_body="part"), {"rate": Rule.STREAMS}, False, True),
    ("SetTitles", _BOOK, _http(put="/v1/{name=shelves/*/books/*}/titles", body="titles"), {}, False, False),
    ("SetPages", _BOOK, _http(put="/v1/{name=shelves/*/books/*}/pages", body="pages"), {}, False, False),
    ("Report", _BOOK, _custom("REPORT", "/v1/{name=shelves/*/books/*}"), {}, False, False),
    ("Rest", _BOOK, _custom("*", "/v1/rest/{name=**}:any"), {}, False, False),
    ("Put", _BOOK, _http(put="/v1/{name=files/**}", body="raw"), {"max_request_bytes": 1000}, False, False),
    ("Upload", _BOOK, _http(post="/v1/{name=files/**}:upload", body="raw"), {"max_request_bytes": UPLOAD_BYTES}, True, False),
    ("Download", _BODY, _http(get="/v1/{name=files/**}:download"), {"rate": Rule.STREAMS}, False, True),
    ("Secret", _BOOK, _http(get="/v1/{name=shelves/*/books/*}:secret"), {"audit": Rule.SENSITIVE}, False, False),
    ("Get", _BOOK, _http(get="/v1/{name=shelves/*/books/*}", additional_bindings=[_http(get="/v1/*/any/{name=**}")]), {}, False, False),
]  # fmt: skip


def _service() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="library.proto", package="kubegems.library", syntax="proto3")
    file.dependency.extend(["kubegems/policy/v1/policy.proto", "google/api/annotations.proto", "google/api/httpbody.proto"])
    for name in ("Ask", "Book"):
        message = file.message_type.add(name=name)
        message.field.add(name="name", number=1, type=F.TYPE_STRING, label=1)
        message.field.add(name="part", number=2, type=F.TYPE_MESSAGE, type_name=_BOOK, label=1)
        message.field.add(name="titles", number=3, type=F.TYPE_STRING, label=3)
        message.field.add(name="pages", number=4, type=F.TYPE_INT64, label=1)
        message.field.add(name="raw", number=5, type=F.TYPE_MESSAGE, type_name=_BODY, label=1)
        message.field.add(name="etag", number=6, type=F.TYPE_STRING, label=1)
    service = file.service.add(name="Library")
    for name, output, http, rule, client, server in RPCS:
        rpc = service.method.add(name=name, input_type=_ASK, output_type=output, client_streaming=client, server_streaming=server)
        rpc.options.Extensions[annotations_pb2.http].CopyFrom(http)
        rpc.options.Extensions[policy_pb2.rule].CopyFrom(Rule(**(RULE | rule)))
        rpc.options.deprecated = rule is OLD
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return descriptor_pool.Default().FindServiceByName("kubegems.library.Library")


assert httpbody_pb2 is not None  # in the pool, for the file above
assert wrappers_pb2 is not None
LIBRARY = _service()
Book: Any = GetMessageClass(LIBRARY.methods_by_name["Get"].output_type)


@dataclass(frozen=True, slots=True)
class HubTls:
    """TLS of both ends."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class Library:
    """Answers with what it was asked; keeps uploads; downloads what it is told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.received = 0
        self.most_ahead = 0
        self.pace: asyncio.Event | None = None
        self.produced = 0
        self.pieces = 4
        self.breaks = False
        self.closed = asyncio.Event()
        self.remaining: float | None = None
        for rpc in LIBRARY.methods:
            if not hasattr(self, rpc.name):
                setattr(self, rpc.name, self._get)

    async def _get(self, request: Any, call: Any) -> Any:
        self.asked.append(request)
        return Book(
            name=request.name, part=Book(name="part", etag="3"), titles=list(request.titles) or ["a", "b"], pages=request.pages or 7
        )

    async def GetRaw(self, request: Any, call: Any) -> Any:
        return Book(raw=httpbody_pb2.HttpBody(content_type="text/plain", data=b"raw bytes"))

    async def Get(self, request: Any, call: Any) -> Any:
        self.asked.append(request)
        return Book(name=request.name, titles=["a title"] * request.pages, etag="5")

    async def Secret(self, request: Any, call: Any) -> Any:
        return Book(name=request.name, titles=["a title"] * 1000)

    async def Tail(self, request: Any, call: Any) -> AsyncIterator[Any]:
        for number in range(3):
            yield Book(part=Book(pages=number))

    async def Upload(self, request: Any, call: Any) -> Any:
        self.asked.append(request)
        async for piece in call.upload:
            self.received += len(piece)
            if self.pace is not None:
                await self.pace.wait()
        return Book(name=request.name, pages=self.received)

    async def Download(self, request: Any, call: Any) -> AsyncIterator[Any]:
        try:
            for number in range(self.pieces):
                self.produced += 1
                yield httpbody_pb2.HttpBody(content_type="text/x-log", data=bytes([65 + number % 26]) * 65536)
            if self.breaks:
                raise ConnectionError("the disk is gone")
        finally:
            self.closed.set()


class Served:
    """The server and a client's ways to it."""

    def __init__(self, library: Library, base: str, port: int, session: aiohttp.ClientSession, pipeline: Pipeline) -> None:
        self.library, self.base, self.port, self.session, self.pipeline = library, base, port, session, pipeline

    async def get(self, path: str, method: str = "GET", **more: Any) -> tuple[int, Any, bytes]:
        async with self.session.request(method, self.base + path, **more) as reply:
            return reply.status, reply.headers, await reply.read()


@asynccontextmanager
async def served(tls: ssl.SSLContext | None = None, **server: Any) -> AsyncIterator[Served]:
    """A running server; arguments are those of HttpServer, and `cors` and `limit`."""
    library = Library()
    pipeline = Pipeline(methods(LIBRARY, library), authenticate=Users(), registry=CollectorRegistry())
    http = HttpServer(Api(pipeline, cors=server.pop("cors", None), limit=server.pop("limit", None)), **server)
    port = await http.start("127.0.0.1", 0, tls)
    headers = {"Authorization": "Bearer admin"}
    async with aiohttp.ClientSession(headers=headers, auto_decompress=False, skip_auto_headers=["Accept-Encoding"]) as session:
        yield Served(library, f"http://127.0.0.1:{port}", port, session, pipeline)
    await http.drain()
