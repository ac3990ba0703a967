"""Forwarding of whole services that another process owns: the gateway decides, the owner answers and keeps the record.

Requests are parsed once, for rights and validation; replies and stream items pass as the bytes they came in, items that came
together as a list.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from libs.clock import Clock
from libs.crypt.signing import SigningKey
from libs.faults import Fault
from libs.rpc import batches, context
from libs.rpc.call import Call, Method
from libs.rpc.client import SECONDS, Channel
from libs.rpc.pipeline import UNARY_SECONDS
from libs.rpc.registry import Refused, bind, rule_problems

_CARRIED = ("idempotency-key",)
_MOST_SECONDS = 24 * 3600.0  # a stream that says nothing about its end; its rights are watched by who serves it


def forward(
    service: ServiceDescriptor,
    channel: Channel,
    key: Callable[[], SigningKey],
    clock: Clock,
    *,
    known_permissions: Collection[str] | None = None,
) -> list[Method]:
    """The methods of a service, answered over a channel; for the pipeline of the public edge. Internal ones are left out.

    Args:
        service: the service's descriptor.
        channel: to its owner; the owner's name is the context's audience.
        key: what contexts are signed with, asked at each call since keys rotate.
        clock: for the contexts' lifetime.
        known_permissions: as in `registry.methods`.

    Raises:
        Refused: as `registry.methods`, for rules.
    """
    problems = [f"{d.full_name}: {p}" for d in service.methods for p in rule_problems(d, known_permissions)]
    if problems:
        raise Refused("\n".join(problems))
    forwarder = _Forwarder(channel, key, clock)
    methods = [bind(d, forwarder.handler(d), forwarded=True) for d in service.methods]
    return [m for m in methods if not m.rule.internal]


class _Forwarder:
    def __init__(self, channel: Channel, key: Callable[[], SigningKey], clock: Clock) -> None:
        self._channel, self._key, self._clock = channel, key, clock

    def handler(self, descriptor: MethodDescriptor) -> Any:
        path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        return self._stream(path) if descriptor.server_streaming else self._unary(path)

    def _unary(self, path: str) -> Any:
        invoke = self._channel.unary_unary(path)

        async def unary(request: Message, call: Call) -> bytes:
            seconds = UNARY_SECONDS if call.timeout is None else max(call.timeout, 0.001)
            try:
                reply: bytes = await invoke(request.SerializeToString(), timeout=max(seconds, SECONDS), metadata=self._metadata(call))
            except Fault as fault:
                call.recorded = bool(fault.metadata.pop("answered_by", ""))
                raise
            call.recorded = True
            return reply

        return unary

    def _stream(self, path: str) -> Any:
        invoke = self._channel.unary_stream(path)

        async def stream(request: Message, call: Call) -> AsyncIterator[bytes | list[bytes]]:
            metadata = (*self._metadata(call), batches.TAKEN)
            items = invoke(request.SerializeToString(), timeout=call.timeout or _MOST_SECONDS, metadata=metadata)
            try:
                async for item in items:
                    call.recorded = True
                    yield batches.unpacked(item)
            except Fault as fault:
                call.recorded = call.recorded or bool(fault.metadata.pop("answered_by", ""))
                raise
            finally:
                await items.aclose()

        return stream

    def _metadata(self, call: Call) -> tuple[tuple[str, str], ...]:
        token = context.sign(self._key(), call, self._channel.service, now=self._clock.now())
        carried = tuple((k, call.metadata[k]) for k in _CARRIED if k in call.metadata)
        return ((context.HEADER, token), *carried)
