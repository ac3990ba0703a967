"""What a message of the work queue says: which jobs may be claimed, several of one queue when many wait."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError

from kubegems.jobs.v1 import events_pb2
from libs.jobs.window import Message

Ticket = tuple[uuid.UUID, int]  # (job, dispatch)
TYPE = events_pb2.JobDispatch.DESCRIPTOR.full_name


def bundle(concurrency: int) -> int:
    """Jobs of one message at most, so that a worker with so many places can always fill nearly all of them."""
    return max(1, concurrency // 16)


def of(dispatch: events_pb2.JobDispatch) -> list[Ticket]:
    """The jobs of a message; ValueError when it is none of ours."""
    return [(uuid.UUID(dispatch.job), dispatch.dispatch), *((uuid.UUID(other.job), other.dispatch) for other in dispatch.also)]


def parse(data: bytes) -> list[Ticket]:
    """As `of`, from the bytes."""
    try:
        return of(events_pb2.JobDispatch.FromString(data))
    except DecodeError as error:
        raise ValueError(str(error)) from error


def bundles(messages: Sequence[Message], size: int) -> Iterator[tuple[str, bytes]]:
    """(queue, bytes) of messages to send, in order, up to `size` jobs of one queue together."""
    start = 0
    while start < len(messages):
        queue, end = messages[start].queue, start + 1
        while end < len(messages) and end - start < size and messages[end].queue == queue:
            end += 1
        first, *also = [events_pb2.JobDispatch(job=str(m.job), attempt=m.attempt, dispatch=m.dispatch) for m in messages[start:end]]
        first.also.extend(also)
        yield queue, first.SerializeToString()
        start = end
