"""What comes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
HEADER_ID = "Nats-Msg-Id"
HEADER_TRACE = "traceparent"
HEADER_TYPE = "Kubegems-Type"
HEADER_CONTENT = "Content-Type"
CONTENT = "application/protobuf"


@dataclass(frozen=True, slots=True)
class Received:
    """A message, or the news that some may be missing.

    Attributes:
        subject: where it was published.
        data: the bytes.
        headers: its headers.
        sequence: place in its stream; 0 for hints.
        delivered: how often it was delivered, from 1; 0 for hints.
        gap: nothing but the news that messages before this point may be missing: look for yourself.
        reply: where an answer is awaited; empty for none.
    """

    subject: str = ""
    data: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    sequence: int = 0
    delivered: int = 0
    gap: bool = False
    reply: str = ""

    @property
    def id(self) -> str:
        """The publisher's id, by which repeats are told; empty for none."""
        return self.headers.get(HEADER_ID, "")

    @property
    def traceparent(self) -> str:
        """Trace context of the publisher."""
        return self.headers.get(HEADER_TRACE, "")

    @property
    def type_name(self) -> str:
        """Full name of the message's type."""
        return self.headers.get(HEADER_TYPE, "")

    def parse(self, kind: type[M]) -> M:
        """The message; ValueError when it is of another type or not one at all."""
        if self.type_name and self.type_name != kind.DESCRIPTOR.full_name:
            raise ValueError(f"{self.subject}: {self.type_name} came, {kind.DESCRIPTOR.full_name} was awaited")
        return kind.FromString(self.data)


def of(message: Any) -> Received:
    """What the client's message says."""
    sequence = delivered = 0
    if message.reply.startswith("$JS.ACK."):
        sequence, delivered = message.metadata.sequence.stream, message.metadata.num_delivered
    return Received(message.subject, message.data, message.headers or {}, sequence, delivered, reply=message.reply)


def headers(type_: str, id_: str, traceparent: str) -> dict[str, str]:
    """Headers of what we publish."""
    found = {HEADER_TYPE: type_, HEADER_CONTENT: CONTENT}
    if id_:
        found[HEADER_ID] = id_
    if traceparent:
        found[HEADER_TRACE] = traceparent
    return found
