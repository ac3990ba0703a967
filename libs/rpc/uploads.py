"""Uploads: a stream of requests of which the first names what it is about and each brings a piece of one google.api.HttpBody."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from libs.rpc import sizes
from libs.rpc.call import Method


def body_of(descriptor: Descriptor) -> str | None:
    """The field that carries the body: its name, empty when the request is the body itself, None when there is none."""
    if descriptor.full_name == sizes.HTTP_BODY:
        return ""
    names = [f.name for f in descriptor.fields if f.message_type is not None and f.message_type.full_name == sizes.HTTP_BODY]
    return names[0] if len(names) == 1 else None


async def chunks(method: Method, first: Message, rest: AsyncIterable[Message]) -> AsyncIterator[bytes]:
    """The body of an upload over gRPC, piece by piece; raises TooLarge once it is larger than the method takes."""
    name = body_of(method.descriptor.input_type) or ""
    size = 0
    data = _data(first, name)
    size += len(data)
    sizes.refuse(method, size)
    if data:
        yield data
    async for message in rest:
        data = _data(message, name)
        size += len(data)
        sizes.refuse(method, size)
        if data:
            yield data


async def bounded(method: Method, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same for a body that comes raw."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        sizes.refuse(method, size)
        yield piece


def _data(message: Any, name: str) -> bytes:
    body: Any = getattr(message, name) if name else message
    return bytes(body.data)
