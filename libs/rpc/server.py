"""A gRPC listener: raw bytes in, the pipeline, raw bytes out; with health, reflection, TLS and graceful drain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from libs import log
from libs.clock import new_id
from libs.faults import Fault, Invalid, Unavailable
from libs.rpc import batches, sizes, status, uploads
from libs.rpc.addresses import Proxies
from libs.rpc.call import Call, Method
from libs.rpc.pipeline import Pipeline
from libs.rpc.tls import Tls

_log = log.get("libs.rpc")
Context = grpc.aio.ServicerContext[Any, Any]
MAX_METADATA = 64 * 1024  # a caller context may be that long; decisions.md 7
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # without it C-core waits a minute, whatever the line above says
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),  # who pings more often than the interval above, or HUB_PINGS, is sent away
    ("grpc.max_connection_idle_ms", 15 * 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.default_compression_level", 1),  # by what the client takes; `_sent` says for which messages
)
HUB_PINGS = 2.0  # seconds that the hub's own services leave at least between two pings to each other
_HEADROOM = 64 * 1024  # so that it is us who say what was too large
Answer = Callable[[Any, Context, Call], Awaitable[Any]]
_HIDDEN = frozenset({"authorization", "cookie"})
# Health and reflection pass no pipeline. Their rule: whoever can connect may ask; reflection shows this listener's services only.
_OPEN_TO_ALL = (health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)


class Server:
    """One gRPC server; build it inside the running loop.

    Args:
        pipeline: runs the calls.
        methods: which of its methods are served here (see `listeners`); all by default.
        max_concurrent: calls at once, all connections together; more are refused with RESOURCE_EXHAUSTED.
        connections: at once, those in the handshake too; more are closed. C-core does not say whose they are, so this only keeps the
            process's files; whom it keeps out is for a proxy or firewall to choose.
        per_connection: calls at once of one connection; more wait. Raise it where the gateway brings everybody's streams.
        for_hub: only the hub's own services come here: they ping often, so as to notice soon when this process stands still.
        max_metadata: bytes of metadata; raise it to `MAX_METADATA` where caller contexts come in.
        proxies: whose word about the client's address is taken.
    """

    def __init__(
        self, pipeline: Pipeline, methods: Iterable[Method] | None = None, *,
        max_concurrent: int = 2000, connections: int = 4096, per_connection: int = 256, max_metadata: int = 16 * 1024,
        for_hub: bool = False, proxies: Proxies | None = None,
    ) -> None:  # fmt: skip
        self._pipeline, self._proxies = pipeline, proxies or Proxies()
        served = list(pipeline.methods if methods is None else methods)
        options = [*_OPTIONS, ("grpc.max_metadata_size", max_metadata), ("grpc.absolute_max_metadata_size", max_metadata)]
        options += [("grpc.max_allowed_incoming_connections", connections), ("grpc.max_concurrent_streams", per_connection)]
        if for_hub:
            options.append(("grpc.http2.min_ping_interval_without_data_ms", int(HUB_PINGS * 1000)))
        options.append(("grpc.max_receive_message_length", max(map(sizes.most, served), default=0) + _HEADROOM))
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=max_concurrent)
        self.health = health.aio.HealthServicer()
        self._names = sorted({m.descriptor.containing_service.full_name for m in served})
        for name in self._names:
            self._server.add_registered_method_handlers(name, handlers := self._handlers(name, served))
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        reflection.enable_server_reflection([*self._names, *_OPEN_TO_ALL], self._server)

    def listen(self, address: str, tls: Tls | None, *, require_client: bool = False) -> int:
        """Binds `host:port` (port 0: any free one) and returns the port; RuntimeError when it is taken. No TLS: for tests only."""
        if tls is None:
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, tls.server(require_client=require_client)))

    async def start(self) -> None:
        """Serves, and says so to health checks."""
        await self._server.start()
        await self.serving()

    async def serving(self, *, ready: bool = True) -> None:
        """Says to health checks whether calls are welcome, for the process (`""`) and for each service."""
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self.health.set(name, state)

    async def drain(self, grace: float = 10.0) -> None:
        """Turns health off, takes no new calls, lets those under way end for `grace` seconds, then cancels them."""
        await self.health.enter_graceful_shutdown()
        await self._server.stop(grace)

    def _handlers(self, name: str, methods: Iterable[Method]) -> dict[str, Any]:
        mine = [m for m in methods if m.descriptor.containing_service.full_name == name]
        return {m.descriptor.name: self._handler(m) for m in mine}

    def _handler(self, method: Method) -> Any:
        if method.streams:
            return grpc.unary_stream_rpc_method_handler(self._guarded(method, self._stream(method)))
        if method.uploads:
            return grpc.stream_unary_rpc_method_handler(self._guarded(method, self._upload(method)))
        return grpc.unary_unary_rpc_method_handler(self._guarded(method, self._unary(method)))

    def _unary(self, method: Method) -> Answer:
        squeezed = sizes.compressible(method)

        async def unary(raw: bytes, context: Context, call: Call) -> bytes:
            reply = await self._pipeline.unary(call, lambda: _parsed(method, raw))
            context.set_trailing_metadata(tuple(call.response_headers.items()))
            return _sent(_encoded(reply), context, squeezed=squeezed)

        return unary

    def _upload(self, method: Method) -> Answer:
        async def upload(raw: AsyncIterator[bytes], context: Context, call: Call) -> bytes:
            async def first() -> Message:
                rest = aiter(raw)
                try:
                    named = _parsed(method, await anext(rest))
                except StopAsyncIteration as error:
                    raise Invalid("the stream has no message") from error
                call.upload = uploads.chunks(method, named, (_parsed(method, piece) async for piece in rest))
                return named

            reply = await self._pipeline.unary(call, first)
            context.set_trailing_metadata(tuple(call.response_headers.items()))
            return _sent(_encoded(reply), context, squeezed=False)

        return upload

    def _stream(self, method: Method) -> Answer:
        squeezed = sizes.compressible(method)

        async def stream(raw: bytes, context: Context, call: Call) -> None:
            async with aclosing(self._pipeline.stream(call, lambda: _parsed(method, raw))) as items:
                together = batches.asked(call)
                async for item in items:
                    for message in batches.packed(item) if together else map(_encoded, batches.each(item)):
                        await context.write(_sent(message, context, squeezed=squeezed))
            context.set_trailing_metadata(tuple(call.response_headers.items()))

        return stream

    def _guarded(self, method: Method, answer: Answer) -> Callable[[Any, Context], Awaitable[Any]]:
        """Tells the wire what went wrong; a call that is not answered would leave its client hanging."""

        async def guarded(raw: Any, context: Context) -> Any:
            call = _call(method, context, self._proxies)
            try:
                return await answer(raw, context, call)
            except Fault as fault:
                await _abort(context, fault, call)
            except grpc.aio.UsageError:  # the stream's client has gone between two writes
                return None

        return guarded


def _sent(raw: bytes, context: Context, *, squeezed: bool) -> bytes:
    """A message about to be sent; small ones and those that may hold secrets go as they are."""
    if not squeezed or len(raw) < sizes.COMPRESSED_FROM:
        context.disable_next_message_compression()
    return raw


async def _abort(context: Context, fault: Fault, call: Call) -> None:
    wire = status.to_status(fault, call.request_id)
    headers = (*call.response_headers.items(), (status.DETAILS, wire.SerializeToString()))
    await context.abort(status.GRPC_CODE[int(fault.code)], wire.message, headers)


def _call(method: Method, context: Context, proxies: Proxies) -> Call:
    metadata = {str(k): v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
    call = Call(
        method,
        address=proxies.client(_address(context.peer()), metadata.get("x-forwarded-for", "")),
        user_agent=metadata.get("user-agent", "")[:256],
        request_id=new_id().hex,
        traceparent=metadata.get("traceparent", ""),
        credential=_bearer(metadata.get("authorization", "")),
        peer=_spiffe(context),
        timeout=context.time_remaining(),
    )
    call.metadata = {k: v for k, v in metadata.items() if k not in _HIDDEN}
    call.response_headers["kubegems-request-id"] = call.request_id
    return call


def _bearer(header: str) -> str:
    kind, _, token = header.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _spiffe(context: Context) -> str:
    """The one URI name of the client's certificate, which C-core proved against the listener's CA."""
    names = list(context.auth_context().get("peer_spiffe_id", ()))
    return names[0].decode() if len(names) == 1 else ""


def _address(peer: str) -> str:
    """`ipv4:127.0.0.1:1234` or `ipv6:%5B::1%5D:1234` without family and port."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return peer
    return unquote(rest).rpartition(":")[0].strip("[]")


def _parsed(method: Method, raw: bytes) -> Message:
    sizes.refuse(method, len(raw))
    request = method.request_class()
    try:
        request.ParseFromString(raw)
    except DecodeError as error:
        raise Invalid(f"the request is no {method.descriptor.input_type.full_name}") from error
    return request


def _encoded(reply: Any) -> bytes:
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, Message):
        return reply.SerializeToString()
    raise Unavailable("no answer")
