"""Calls to other services of the platform: mTLS, a deadline on each, trace context carried, Faults rebuilt."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar, cast

import grpc

from libs.log import trace
from libs.rpc import deadline, status
from libs.rpc.server import HUB_PINGS, MAX_METADATA
from libs.rpc.tls import Tls

_ALONE = ("grpc.use_local_subchannel_pool", 1)  # no connection is shared with another channel of the process
_ROUND_ROBIN = ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}')
S = TypeVar("S")
SECONDS = 10.0
Metadata = tuple[tuple[str, str], ...]
_Options = tuple[tuple[str, str | int], ...]
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", MAX_METADATA),
    ("grpc.keepalive_time_ms", int(2 * HUB_PINGS * 1000)),  # a process that stands still is left within eight seconds
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),  # without it C-core waits a minute for the ping's answer, whatever the line above says
    ("grpc.http2.max_pings_without_data", 0),  # any number: quiet streams are what it is for
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),  # retries belong to who knows that the call is idempotent
)


class Channel:
    """A channel to one service of the hub, whose server is built `for_hub`.

    `stub(SomeServiceStub)` gives the generated stub, typed: `await stub.Rpc(request, timeout=2)`, `async for item in
    stub.Stream(request)`. A call without a timeout gets 10 s, a stream none; both end with the call that makes them.
    Raises Faults, Unavailable when the service is away.

    Args:
        target: `host:port`; several IP addresses, separated by commas, or a `dns:///` name of several are replicas: calls go
            round them, and past those that are away.
        spread: False keeps all calls on one connection, and so at one replica, while that lasts.
        service: name of the service; its certificate must carry `<service>.hub.kubegems.internal`.
        tls: our own certificate; without it the channel is open, for tests on loopback only.
    """

    def __init__(self, target: str, service: str, tls: Tls | None, *, spread: bool = True) -> None:
        self.service = service
        target, balanced = _several(target, spread=spread)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(target, options=(*_OPTIONS, *balanced))
            return
        options = [*_OPTIONS, *balanced, ("grpc.ssl_target_name_override", f"{service}.hub.kubegems.internal")]
        self._channel = grpc.aio.secure_channel(target, tls.channel(), options=options)

    def stub(self, kind: Callable[[grpc.aio.Channel], S]) -> S:
        """The generated stub of a service."""
        return kind(cast("grpc.aio.Channel", self))

    async def close(self) -> None:
        """Ends calls under way and closes."""
        await self._channel.close()

    async def ready(self) -> None:
        """Waits until connected; the caller sets the deadline."""
        await self._channel.channel_ready()

    def unary_unary(self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """What generated stubs ask for: an async function of (request, timeout, metadata)."""
        invoke = self._channel.unary_unary(path, request_serializer, response_deserializer)

        async def call(request: Any, *, timeout: float = SECONDS, metadata: Metadata = ()) -> Any:
            with trace.span(path[1:], kind=trace.SpanKind.CLIENT):
                try:
                    return await invoke(request, timeout=deadline.remaining(timeout), metadata=(*_context(), *metadata))
                except grpc.aio.AioRpcError as error:
                    raise self._fault(error) from error

        return call

    def unary_stream(self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """What generated stubs ask for: an async generator of (request, timeout, metadata)."""
        invoke = self._channel.unary_stream(path, request_serializer, response_deserializer)

        async def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> AsyncIterator[Any]:
            left = deadline.left() if timeout is None else deadline.remaining(timeout)
            stream = invoke(request, timeout=left, metadata=(*_context(), *metadata))
            try:
                async for item in stream:
                    yield item
            except grpc.aio.AioRpcError as error:
                raise self._fault(error) from error
            finally:
                stream.cancel()

        return call

    def stream_unary(self, *_: Any, **__: Any) -> Any:
        """Not served by the platform."""
        return None

    stream_stream = stream_unary

    def _fault(self, error: grpc.aio.AioRpcError) -> Exception:
        fault, answered = status.from_rpc_error(error, self.service)
        fault.metadata.setdefault("answered_by", self.service if answered else "")
        return fault


def _several(target: str, *, spread: bool) -> tuple[str, _Options]:
    """A target of one or more addresses in gRPC's words, and the option that spreads calls over them or does not."""
    addresses = [address.strip() for address in target.split(",") if address.strip()]
    several = len(addresses) > 1 or target.startswith("dns:")
    balanced: _Options = (_ALONE,) if not spread else (_ROUND_ROBIN,) if several else ()
    if len(addresses) > 1:
        random.shuffle(addresses)  # who keeps to one does not keep to the first
        kind = "ipv6" if addresses[0].startswith("[") else "ipv4"
        return f"{kind}:{','.join(addresses)}", balanced
    return target, balanced


def _context() -> Metadata:
    parent = trace.traceparent()
    return (("traceparent", parent),) if parent else ()
