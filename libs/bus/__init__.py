"""Bus: NATS with JetStream, where nothing is dropped in silence; the only home of the NATS client.

`Bus.connect` keeps one connection through every outage, with jitter, for ever. `publish` waits for the broker's ack or
fails within its time; `hint` is fire-and-forget and says so; `subscribe` and `consume` are supervised: whatever ends
them, they are made again, and a gap is told. `subjects` builds every subject, `streams` holds every stream's limits,
`server` renders the broker's configuration, `callout` answers who may connect. `relay` (imported by hub services alone,
since it needs PostgreSQL) publishes outboxes. It refuses to buffer while disconnected, and to publish outside the scheme.
"""

from __future__ import annotations

from libs.bus.bus import Bus, Full
from libs.bus.consume import Rejected
from libs.bus.received import Received

__all__ = ["Bus", "Full", "Received", "Rejected"]
