"""Batches: items of a stream that go from one hub service to another many in one message, encoded already.

A handler yields a list where it has several items at once. Who takes batches says so in the call's metadata and proves to
be of the hub; everybody else gets the items one by one, as the API says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from kubegems.policy.v1.batch_pb2 import Batch
from libs.rpc.call import Call
from libs.rpc.peers import trusted

TAKEN = ("kubegems-batches", "1")  # the metadata that asks for them
_MOST_BYTES = 256 * 1024  # of a message; a single item may be larger
_TAG = Batch(items=[b""]).SerializeToString()[:-1]


def asked(call: Call) -> bool:
    """Whether the caller takes batches."""
    name, value = TAKEN
    return call.metadata.get(name) == value and trusted(call)


def each(yielded: Any) -> Iterable[Any]:
    """The items of what a handler yielded."""
    return yielded if isinstance(yielded, list) else (yielded,)


def packed(yielded: Any) -> Iterator[bytes]:
    """Messages for a caller that takes batches. A lone item needs none around it."""
    batch, size = Batch(), 0
    for item in each(yielded):
        raw = item.SerializeToString() if isinstance(item, Message) else item
        if batch.items and size + len(raw) > _MOST_BYTES:
            yield _closed(batch)
            batch, size = Batch(), 0
        batch.items.append(raw)
        size += len(raw)
    if batch.items:
        yield _closed(batch)


def _closed(batch: Batch) -> bytes:
    return batch.items[0] if len(batch.items) == 1 else batch.SerializeToString()


def unpacked(raw: bytes) -> bytes | list[bytes]:
    """A message as it came: the item, or the list of items that a handler yielded."""
    return list(Batch.FromString(raw).items) if raw.startswith(_TAG) else raw
