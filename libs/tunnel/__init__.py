"""Tunnel: many streams over one connection that the far end dialled.

A small frame multiplexer (`mux`) carries streams with their own credit, half-close, reset and priorities; it knows
nothing of its carrier. `tcp` is the usual one: one mutually authenticated TLS connection; `websocket` the one for
networks that let only HTTPS through. `calls` makes typed calls on streams from the protos' own descriptors (deadline,
trace context, status with details); `kubernetes` is the shape of a Kubernetes request on a stream; `splice` joins two
streams. Control frames go first, a little of what was idle (a key, an event) next, bulk last. What a stuck reader holds
is bounded by its window, what a slow link queues by the carrier's marks. It refuses frames over 1 MiB, messages over
16 MiB, a peer that sends beyond its credit, falls silent, answers no ping or breaks the protocol. It does not know who may
do what: grants and rights belong to the services at its ends.
"""

from libs.tunnel.errors import Ended, Lost, ProtocolBroken, Reset, StreamEnded, TooLarge
from libs.tunnel.limits import Limits
from libs.tunnel.mux import Mux
from libs.tunnel.stream import Stream

__all__ = ["Ended", "Limits", "Lost", "Mux", "ProtocolBroken", "Reset", "Stream", "StreamEnded", "TooLarge"]
