"""What gRPC adds to calls: sizes per method, uploads, compression, pings, the client's address, the time that is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry

from kubegems.messages.v1 import event_pb2, message_service_pb2, message_service_pb2_grpc
from kubegems.tenancy.v1 import tenant_service_pb2 as pb
from kubegems.tenancy.v1 import tenant_service_pb2_grpc
from libs.faults import Unavailable
from libs.rest.tests.library import LIBRARY, Book, Library
from libs.rpc import Call, Channel, Pipeline, Server, methods, sizes
from libs.rpc.addresses import Proxies
from libs.rpc.registry import bind
from libs.rpc.server import HUB_PINGS
from libs.rpc.tests.doubles import MESSAGES, TENANTS, Messages, Tenants, Users
from tests.kit.eventually import timescale
from tests.kit.relay import Relay

Ask: Any = GetMessageClass(LIBRARY.methods_by_name["Get"].input_type)
ADMIN = (("authorization", "Bearer admin"),)
TENANTS_REQUEST: Any = GetMessageClass(TENANTS.methods_by_name["GetTenant"].input_type)
TENANTS_REPLY: Any = GetMessageClass(TENANTS.methods_by_name["GetTenant"].output_type)
GET = "/kubegems.library.Library/Get"


@asynccontextmanager
async def _library(**more: Any) -> AsyncIterator[tuple[Any, Library]]:
    """A server of the library and an open channel to it, which knows its `port`."""
    library = Library()
    pipeline = Pipeline(methods(LIBRARY, library), authenticate=Users(), registry=CollectorRegistry())
    server = Server(pipeline, **more)
    port = server.listen("127.0.0.1:0", None)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.port, channel.pipeline = port, pipeline  # type: ignore[attr-defined] # carried along for the tests
        yield channel, library
    await server.drain(0.1)


async def _none() -> AsyncIterator[bytes]:
    return
    yield


@asynccontextmanager
async def _counted(port: int) -> AsyncIterator[tuple[grpc.aio.Channel, list[int]]]:
    """A channel through a relay, and how many bytes the server has sent on it."""
    counted = [0]

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        while data := await reader.read(65536):
            counted[0] += len(data) if count else 0
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, upstream_writer, count=False), pump(upstream_reader, writer, count=True), return_exceptions=True)

    listener = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}") as channel:
        yield channel, counted
    listener.close()


async def test_each_method_has_its_own_size() -> None:
    """A request over its method's limit is refused with its own reason; a larger one passes where the method takes it."""
    async with _library() as (channel, library):
        get: Any = channel.unary_unary("/kubegems.library.Library/Get")
        assert (await get(Ask(name="x" * 4000).SerializeToString(), metadata=ADMIN)) is not None
        for path, size in (("Get", sizes.PUBLIC_BYTES + 1), ("Put", 1001)):
            call: Any = channel.unary_unary(f"/kubegems.library.Library/{path}")
            with pytest.raises(grpc.aio.AioRpcError) as refused_:
                await call(Ask(raw={"data": b"x" * size}).SerializeToString(), metadata=ADMIN)
            assert refused_.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "which is all that" in str(refused_.value.details())
        assert len(library.asked) <= 1


async def test_an_upload_is_a_stream_of_pieces() -> None:
    """The first message names it, each brings a piece; it is refused once it is too large, and when it is empty."""
    async with _library() as (channel, library):
        upload: Any = channel.stream_unary("/kubegems.library.Library/Upload")

        async def pieces(count: int, size: int) -> AsyncIterator[bytes]:
            yield Ask(name="files/a", raw={"content_type": "text/plain"}).SerializeToString()
            for _ in range(count):
                yield Ask(raw={"data": b"x" * size}).SerializeToString()

        reply = Book.FromString(await upload(pieces(10, 1000), metadata=ADMIN, timeout=10))
        assert (reply.name, reply.pages, library.received) == ("files/a", 10_000, 10_000)
        for given, code in (
            (pieces(9, 1024 * 1024), grpc.StatusCode.RESOURCE_EXHAUSTED),
            (_none(), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused_:
                await upload(given, metadata=ADMIN, timeout=10)
            assert refused_.value.code() is code


async def test_answers_are_compressed_where_that_tells_nothing() -> None:
    """Fewer bytes on the wire for a large answer; as many as ever for the same answer of a sensitive method."""
    async with _library() as (channel, _), _counted(channel.port) as (through, counted):
        sizes_ = {}
        for rpc in ("Get", "Secret"):
            call: Any = through.unary_unary(f"/kubegems.library.Library/{rpc}")
            before = counted[0]
            raw = await call(Ask(name="shelves/1/books/2", pages=1000).SerializeToString(), metadata=ADMIN)
            sizes_[rpc] = (counted[0] - before, len(raw))
        assert sizes_["Secret"][0] > sizes_["Secret"][1]
        assert sizes_["Get"][0] < sizes_["Get"][1] / 4, sizes_


async def test_a_client_that_pings_without_end_is_sent_away() -> None:
    """Keepalive pings far below the interval end the connection; those of a polite client do not."""
    async with _library() as (channel, _):
        raw_reader, raw_writer = await asyncio.open_connection("127.0.0.1", channel.port)
        raw_writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"12345678"
        seen = b""
        async with asyncio.timeout(10):
            try:
                while b"too_many_pings" not in seen:
                    raw_writer.write(ping)
                    if not (got := await raw_reader.read(4096)):
                        break
                    seen += got
            except ConnectionError:
                pass
        raw_writer.close()
        assert b"too_many_pings" in seen


@pytest.mark.parametrize("quiet", [True, False], ids=["a quiet stream", "a call"])
async def test_a_server_that_stands_still_is_left_soon(quiet: bool) -> None:
    """Nothing breaks and nothing is answered: what is under way fails within ten seconds; a stream that is merely quiet goes on."""
    messages = Messages()
    served = [*methods(TENANTS, Tenants()), *methods(MESSAGES, messages)]
    server = Server(Pipeline(served, authenticate=Users(), registry=CollectorRegistry()), for_hub=True)
    port = server.listen("127.0.0.1:0", None)
    await server.start()
    relay = Relay(lambda: asyncio.open_connection("127.0.0.1", port))
    listener = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    channel = Channel(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", "gateway", None)
    get = channel.stub(tenant_service_pb2_grpc.TenantServiceStub).GetTenant
    stream = channel.stub(message_service_pb2_grpc.MessageServiceStub).Subscribe(message_service_pb2.SubscribeRequest(), metadata=ADMIN)
    messages.events.put_nowait(event_pb2.Event(subscription="first"))
    assert (await anext(aiter(stream))).subscription == "first"
    reading = asyncio.ensure_future(anext(aiter(stream)))
    if quiet:
        done, _ = await asyncio.wait({reading}, timeout=6 * HUB_PINGS)
        assert not done, "pings from this end are no reason to be sent away"
    relay.freeze()
    work = reading if quiet else asyncio.ensure_future(get(pb.GetTenantRequest(name="tenants/acme"), timeout=60, metadata=ADMIN))
    async with asyncio.timeout(10 * timescale()):
        with pytest.raises(Unavailable):
            await work
    reading.cancel()
    await channel.close()
    listener.close()
    await server.drain(0.1)


async def test_connections_are_bounded() -> None:
    """One too many is closed; those that are there are served, and a place that is given up is free again."""
    async with _library(connections=3) as (channel, _):
        get = channel.unary_unary(GET, Ask.SerializeToString, Book.FromString)
        await get(Ask(name="x"), metadata=ADMIN)
        held = [await asyncio.open_connection("127.0.0.1", channel.port) for _ in range(3)]
        async with asyncio.timeout(5):
            assert await held[2][0].read() == b"", "the third beside the channel's own"
            assert [len(await reader.read(1)) for reader, _ in held[:2]] == [1, 1]
        await get(Ask(name="x"), metadata=ADMIN)
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(5):
            while not await _greeted(channel.port):
                await asyncio.sleep(0.01)


async def _greeted(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return bool(await reader.read(1))
    except ConnectionError:
        return False
    finally:
        writer.close()


@pytest.mark.parametrize(("trusted", "seen"), [(["127.0.0.1"], "192.0.2.7"), ([], "127.0.0.1")])
async def test_a_trusted_proxy_says_who_calls(trusted: list[str], seen: str) -> None:
    """The forwarded address counts behind a trusted proxy only."""
    async with _library(proxies=Proxies(trusted)) as (channel, library):
        addresses: list[str] = []

        async def noted(request: Any, call: Any) -> Any:
            addresses.append(call.address)
            return Book()

        del library
        method = next(m for m in channel.pipeline.methods if m.descriptor.name == "Get")
        object.__setattr__(method, "handler", noted)
        await channel.unary_unary(GET)(Ask().SerializeToString(), metadata=(*ADMIN, ("x-forwarded-for", "1.1.1.1, 192.0.2.7")))
        assert addresses == [seen]


async def test_the_time_left_goes_with_every_hop() -> None:
    """A call that a handler makes ends when its own caller's time is up, whatever it asked for itself; streams too."""
    left: list[float | None] = []

    class Inner(Tenants):
        async def GetTenant(self, request: Any, call: Any) -> Any:
            left.append(call.timeout)
            return await super().GetTenant(request, call)

    inner = Server(Pipeline(methods(TENANTS, Inner()), authenticate=Users(), registry=CollectorRegistry()))
    port = inner.listen("127.0.0.1:0", None)
    await inner.start()
    channel = Channel(f"127.0.0.1:{port}", "inner", None)
    path = "/kubegems.tenancy.v1.TenantService/GetTenant"
    get = channel.unary_unary(path, lambda m: m.SerializeToString(), TENANTS_REPLY.FromString)

    async def outer(request: Any, call: Any) -> Any:
        await get(TENANTS_REQUEST(name="tenants/a"), timeout=30.0, metadata=ADMIN)
        return TENANTS_REPLY()

    method = bind(TENANTS.methods_by_name["GetTenant"], outer)
    pipeline = Pipeline([method], authenticate=Users(), registry=CollectorRegistry())
    for timeout, most in ((None, 30.0), (5.0, 5.0)):
        await pipeline.unary(Call(method, credential="admin", timeout=timeout), TENANTS_REQUEST(name="tenants/a"))
        assert left[-1] is not None
        assert most - 2 < left[-1] <= most + 0.1  # gRPC rounds up
    await channel.close()
    await inner.drain(0.1)
