"""Typed calls on streams: requests and replies as messages, a trailer when it failed."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from kubegems.agent.v1 import tunnel_pb2
from libs.faults import DeadlineExceeded, Exhausted, Fault, Internal, Invalid, Unavailable, Unimplemented
from libs.log import trace
from libs.rpc import uploads
from libs.rpc.call import Call, Method
from libs.rpc.peers import TUNNEL
from libs.rpc.pipeline import Pipeline
from libs.rpc.status import from_status, to_status
from libs.tunnel.errors import Ended, Lost, Reset, StreamEnded, TooLarge
from libs.tunnel.mux import Mux
from libs.tunnel.stream import Stream

_MILLIS = 1000
_LONGEST = 2**32 - 1
_COME_SECONDS = 30.0  # for a request to come whole
_TAKEN_SECONDS = 60.0  # for a last answer to be taken


class Disconnected(Unavailable):
    """The tunnel broke while the call was on its way; whether it was done is not known."""

    reason = "TUNNEL_LOST"


class Stopping(Unavailable):
    """A gateway on the way is being restarted."""

    reason = "GATEWAY_STOPPING"


async def unary(
    mux: Mux, method: MethodDescriptor, request: Message, *, timeout: float, grant: tunnel_pb2.GrantUse | None = None,
    forward: tunnel_pb2.Forward | None = None,
) -> Any:  # fmt: skip
    """Calls a unary method at the other end, or with `forward` at a cluster behind it; raises Fault."""
    with trace.span(method.full_name, kind=trace.SpanKind.CLIENT, attributes={"rpc.system": "kubegems"}):
        try:
            stream = await _asked(mux, method, request, timeout, grant, forward=forward)
            try:
                reply = await stream.receive()
                if reply is None:
                    raise failure(stream.trailer) or Internal(f"{method.full_name} ended without an answer")
                return GetMessageClass(method.output_type).FromString(reply)
            finally:
                stream.reset(Reset.CANCELLED)
        except StreamEnded as error:
            raise fault_of(error, method.full_name) from error


async def stream(
    mux: Mux, method: MethodDescriptor, request: Message, *, timeout: float | None, grant: tunnel_pb2.GrantUse | None = None
) -> AsyncIterator[Any]:
    """Calls a server stream at the other end; close the iterator to end it. Raises Fault."""
    reply_class = GetMessageClass(method.output_type)
    try:
        opened = await _asked(mux, method, request, timeout, grant)
        try:
            while (reply := await opened.receive()) is not None:
                yield reply_class.FromString(reply)
            if (fault := failure(opened.trailer)) is not None:
                raise fault
        finally:
            opened.reset(Reset.CANCELLED)
    except StreamEnded as error:
        raise fault_of(error, method.full_name) from error


async def upload(
    mux: Mux, method: MethodDescriptor, requests: AsyncIterable[Message], *, timeout: float, grant: tunnel_pb2.GrantUse | None = None
) -> Any:
    """Calls a client stream at the other end: requests are taken as fast as the far handler reads them. Raises Fault."""
    with trace.span(method.full_name, kind=trace.SpanKind.CLIENT, attributes={"rpc.system": "kubegems"}):
        try:
            opened = mux.open(_header(method, timeout, grant))
            opened.expire_after(timeout)
            try:
                await _send_all(opened, requests)
                reply = await opened.receive()
                if reply is None:
                    raise failure(opened.trailer) or Internal(f"{method.full_name} ended without an answer")
                return GetMessageClass(method.output_type).FromString(reply)
            finally:
                opened.reset(Reset.CANCELLED)
        except StreamEnded as error:
            raise fault_of(error, method.full_name) from error


async def _send_all(opened: Stream, requests: AsyncIterable[Message]) -> None:
    try:
        async for request in requests:
            await opened.send(request.SerializeToString())
        opened.end()
    except Ended as error:
        if error.code is not Reset.DONE:  # the far handler has answered, or refused, without reading to the end
            raise


async def _asked(
    mux: Mux, method: MethodDescriptor, request: Message, timeout: float | None, grant: tunnel_pb2.GrantUse | None,
    *, forward: tunnel_pb2.Forward | None = None,
) -> Stream:  # fmt: skip
    header = _header(method, timeout, grant, forward)
    body = request.SerializeToString()
    inline = len(body) <= mux.limits.inline
    opened = mux.open(header, body if inline else None, end=inline)
    if timeout is not None:
        opened.expire_after(timeout)
    if not inline:
        try:
            await opened.send(body, end=True)
        except BaseException:
            opened.reset(Reset.CANCELLED)
            raise
    return opened


def _header(
    method: MethodDescriptor, timeout: float | None, grant: tunnel_pb2.GrantUse | None, forward: tunnel_pb2.Forward | None = None
) -> bytes:
    millis = 0 if timeout is None else min(max(int(timeout * _MILLIS), 1), _LONGEST)
    call = tunnel_pb2.CallHeader(method=f"/{method.containing_service.full_name}/{method.name}", timeout_millis=millis, grant=grant)
    return tunnel_pb2.StreamHeader(call=call, traceparent=trace.traceparent(), forward=forward).SerializeToString()


async def serve(
    opened: Stream, header: tunnel_pb2.CallHeader, pipeline: Pipeline, *, peer: str, traceparent: str, address: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Answers a call that the peer made, through a pipeline.

    Args:
        opened: the stream.
        header: what was asked.
        pipeline: who answers.
        peer: SPIFFE id that the other end proved.
        traceparent: the caller's span.
        address: the other end's address.
        metadata: what the servicer's call gets as metadata.
    """
    try:
        method = pipeline.method(header.method)
        if method is None:
            raise Unimplemented(f"there is no method {header.method}")
        opened.expire_after(_COME_SECONDS)
        request = _parsed(method, await opened.receive() or b"")
        opened.cancel_timer()
        left = header.timeout_millis / _MILLIS if header.timeout_millis else None
        call = Call(
            method, address=address, transport=TUNNEL, traceparent=traceparent, peer=peer, timeout=left, metadata=dict(metadata or {})
        )
        if method.uploads:
            call.upload = uploads.chunks(method, request, _rest(opened, method))
        if not method.streams:
            reply = await pipeline.unary(call, request)
            opened.expire_after(_TAKEN_SECONDS)
            await opened.send(reply.SerializeToString(), end=True)
            return
        async with aclosing(pipeline.stream(call, request)) as replies:
            async for reply in replies:
                await opened.send(reply.SerializeToString())
        opened.expire_after(_TAKEN_SECONDS)
        opened.end()
    except Fault as fault:
        await fail(opened, fault)


def _parsed(method: Method, body: bytes) -> Message:
    try:
        return method.request_class.FromString(body)
    except DecodeError as error:
        raise Invalid("the request cannot be parsed") from error


async def _rest(opened: Stream, method: Method) -> AsyncIterator[Message]:
    """The requests of a client stream after the first."""
    try:
        while (body := await opened.receive()) is not None:
            yield _parsed(method, body)
    except StreamEnded as error:
        raise fault_of(error, method.path) from error


async def fail(opened: Stream, fault: Fault) -> None:
    """Ends a stream with a fault."""
    opened.expire_after(_TAKEN_SECONDS)
    await opened.send(tunnel_pb2.CallEnd(status=to_status(fault)).SerializeToString(), trailer=True)


def failure(trailer: bytes | None) -> Fault | None:
    """The fault that a trailer tells of."""
    if trailer is None:
        return None
    try:
        status = tunnel_pb2.CallEnd.FromString(trailer).status
    except DecodeError:
        status = status_pb2.Status(code=Internal.code, message="the other end's answer cannot be parsed")
    return from_status(status) if status.code else None


_FAULTS: dict[Reset, tuple[type[Fault], str]] = {
    Reset.DEADLINE: (DeadlineExceeded, "{} took too long"),
    Reset.REFUSED: (Exhausted, "{}: too many streams are open"),
    Reset.TOO_LARGE: (Exhausted, "{}: a message is too large for the tunnel"),
}


def fault_of(error: StreamEnded, what: str) -> Fault:
    """What callers get to know of a broken stream."""
    if isinstance(error, Lost) or (isinstance(error, Ended) and error.code is Reset.LOST):
        return Disconnected(f"{what}: the cluster's tunnel broke; try again")
    if isinstance(error, Ended) and error.code is Reset.STOPPING:
        return Stopping(f"{what}: broken off, because a gateway of the hub is being restarted; try again")
    if isinstance(error, TooLarge):
        return Exhausted(f"{what}: a message is too large for the tunnel")
    if isinstance(error, Ended) and error.code in _FAULTS:
        kind, text = _FAULTS[error.code]
        return kind(text.format(what))
    return Unavailable(f"{what}: broken off by the other end; try again")
