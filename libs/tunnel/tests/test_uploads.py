"""Client streams through the tunnel: pieces in order, back-pressure, refusals in the middle, and a sender that goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.api import httpbody_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import tunnel_pb2
from kubegems.policy.v1 import policy_pb2
from libs import rpc
from libs.faults import Fault, PermissionDenied
from libs.rpc.call import Call, Caller, Kind
from libs.tunnel import Ended, Limits, Mux, Reset, Stream, calls
from libs.tunnel.tests.pipe import pair, refuse

Rule = policy_pb2.Rule
Handler = Callable[[Call], Awaitable[int]]
MOST = 1 << 20


def _service() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="uploads.proto", package="kubegems.uploads", syntax="proto3")
    file.dependency.extend(["google/api/httpbody.proto", "google/protobuf/wrappers.proto", "kubegems/policy/v1/policy.proto"])
    piece = file.message_type.add(name="Piece").field.add(name="body", number=1, label=1)
    piece.type, piece.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, ".google.api.HttpBody"
    method = file.service.add(name="Uploads").method.add(
        name="Upload", input_type=".kubegems.uploads.Piece", output_type=".google.protobuf.Int64Value", client_streaming=True
    )
    rule = Rule(auth=Rule.AGENT_CERT, audit=Rule.READ, rate=Rule.READS, max_request_bytes=MOST)
    method.options.Extensions[policy_pb2.rule].CopyFrom(rule)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return descriptor_pool.Default().FindServiceByName("kubegems.uploads.Uploads")


SERVICE = _service()
assert httpbody_pb2 is not None  # in the pool, for the file above
UPLOAD = SERVICE.methods_by_name["Upload"]


Piece: Any = GetMessageClass(UPLOAD.input_type)


def _piece(data: bytes) -> Any:
    return Piece(body=httpbody_pb2.HttpBody(data=data))


class Uploads:
    """Hands what comes to a function."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def Upload(self, _request: Any, call: Call) -> wrappers_pb2.Int64Value:
        """Its answer is the function's."""
        return wrappers_pb2.Int64Value(value=await self._handler(call))


async def _agent(_call: Call) -> Caller:
    return Caller(Kind.AGENT, "c", "c")


@asynccontextmanager
async def uploading(handler: Handler) -> AsyncIterator[tuple[Mux, Mux]]:
    """A caller's end and the end that serves with `handler`."""
    pipeline = rpc.Pipeline(rpc.methods(SERVICE, Uploads(handler)), peers=_agent, registry=CollectorRegistry())

    async def serve(stream: Stream, header: bytes) -> None:
        opened = tunnel_pb2.StreamHeader.FromString(header)
        await calls.serve(stream, opened.call, pipeline, peer="spiffe://kubegems/cluster/c", traceparent=opened.traceparent)

    here, there = pair(refuse, serve)
    try:
        yield here, there
    finally:
        here.abort("over")


class Source:
    """Pieces, counted as they are taken."""

    def __init__(self, pieces: int, size: int) -> None:
        self.pieces, self.size, self.taken = pieces, size, 0

    async def __aiter__(self) -> AsyncIterator[Any]:
        """One after the other."""
        for number in range(self.pieces):
            self.taken += 1
            yield _piece(bytes([number % 256]) * self.size)


async def test_pieces_arrive_in_order() -> None:
    """The handler reads every byte as it was sent and answers."""
    came = bytearray()

    async def keep(call: Call) -> int:
        assert call.upload is not None
        async for piece in call.upload:
            came.extend(piece)
        return len(came)

    async with uploading(keep) as (here, there):
        answer = await calls.upload(here, UPLOAD, Source(200, 5000), timeout=10)
        assert answer.value == 1_000_000
        assert bytes(came) == b"".join(bytes([n % 256]) * 5000 for n in range(200))
        assert here.streams == there.streams == 0


async def test_a_handler_that_does_not_read_stops_the_source(eventually: Any) -> None:
    """No more than a window and what waits before it is taken from the source; then the deadline ends it."""
    source = Source(100, 100_000)

    async def wait(call: Call) -> int:
        await asyncio.Event().wait()
        return 0

    async with uploading(wait) as (here, there):
        with pytest.raises(Fault) as caught:
            await calls.upload(here, UPLOAD, source, timeout=1)
        assert caught.value.code.name == "DEADLINE_EXCEEDED"
        assert source.taken * source.size <= Limits().window + 4 * source.size
        await eventually(lambda: here.streams == there.streams == 0, within=5)


async def test_a_refusal_in_the_middle_is_what_the_caller_hears() -> None:
    """The handler's own fault, though the source had more to give; the source is not read to its end."""
    source = Source(100_000, 10)

    async def deny(call: Call) -> int:
        assert call.upload is not None
        await anext(aiter(call.upload))
        raise PermissionDenied("not this one")

    async with uploading(deny) as (here, _):
        with pytest.raises(PermissionDenied, match="not this one"):
            await calls.upload(here, UPLOAD, source, timeout=10)
        assert source.taken < source.pieces


async def test_an_upload_over_the_methods_limit_is_refused() -> None:
    """A clear fault once the bytes are more than the rule takes."""

    async def drop(call: Call) -> int:
        assert call.upload is not None
        return sum([len(piece) async for piece in call.upload])

    async with uploading(drop) as (here, _):
        with pytest.raises(Fault, match="all that Upload takes"):
            await calls.upload(here, UPLOAD, Source(3, MOST // 2), timeout=10)


async def test_a_source_that_fails_ends_the_handler(eventually: Any) -> None:
    """The caller gets its own error; the handler is cancelled and nothing stays open."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def read(call: Call) -> int:
        assert call.upload is not None
        begun.set()
        try:
            return sum([len(piece) async for piece in call.upload])
        finally:
            ended.set()

    async def broken() -> AsyncIterator[Any]:
        yield _piece(b"x")
        await begun.wait()
        raise LookupError("planted")

    async with uploading(read) as (here, there):
        with pytest.raises(LookupError, match="planted"):
            await calls.upload(here, UPLOAD, broken(), timeout=10)
        async with asyncio.timeout(5):
            await ended.wait()
        await eventually(lambda: here.streams == there.streams == 0, within=5)


async def test_a_request_that_does_not_come_whole_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins a request and never ends it is told so in time, also when it set no deadline."""
    monkeypatch.setattr(calls, "_COME_SECONDS", 0.2)

    async def never(_call: Call) -> int:
        raise AssertionError

    async with uploading(never) as (here, there):
        header = tunnel_pb2.CallHeader(method=f"/{SERVICE.full_name}/Upload")
        stream = here.open(tunnel_pb2.StreamHeader(call=header).SerializeToString())
        await stream.write(b"half")
        async with asyncio.timeout(5):
            with pytest.raises(Ended) as ended:
                await stream.receive()
        assert ended.value.code is Reset.DEADLINE
        assert there.streams == 0


async def test_an_answer_that_is_not_taken_ends(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    """A caller that asks and reads nothing holds neither stream nor task for ever."""
    monkeypatch.setattr(calls, "_TAKEN_SECONDS", 0.2)

    async def serve(stream: Stream, header: bytes) -> None:
        del header
        await calls.fail(stream, PermissionDenied("x" * 500_000))

    here, there = pair(refuse, serve, Limits(window=300, window_max=300, inline=0))
    stream = here.open(b"", end=True)
    await eventually(lambda: stream.error is not None, within=5)
    assert isinstance(stream.error, Ended)
    assert (stream.error.code, there.streams, len(there._tasks)) == (Reset.DEADLINE, 0, 0)
    here.abort("over")
