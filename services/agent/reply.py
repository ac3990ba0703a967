"""The head of an answer, as it goes to the hub."""

from __future__ import annotations

from collections.abc import Iterable

from kubegems.agent.v1 import tunnel_pb2
from libs.tunnel import Stream
from libs.tunnel.kubernetes import Header


def head(status: int, headers: Iterable[Header]) -> tunnel_pb2.KubernetesReply:
    """A head."""
    lines = [tunnel_pb2.KubernetesHeader.Header(name=name, value=value) for name, value in headers]
    return tunnel_pb2.KubernetesReply(status=status, headers=lines)


async def send_head(stream: Stream, reply: tunnel_pb2.KubernetesReply) -> None:
    """Sends a head as the stream's first message."""
    await stream.send(reply.SerializeToString())
