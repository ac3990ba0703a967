"""The multiplexer's bounds. `window` is part of protocol version 1: both ends must have the same."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Attributes:
        frame: greatest frame taken.
        chunk: most that one stream sends per turn.
        quantum: most that is formed per write.
        window: what a stream may hold unread at first.
        window_max: what it may grow to.
        windows: sum of a connection's windows above which none grows.
        message: greatest message.
        partial: most that messages which are not whole yet may hold, of all streams together.
        inline: greatest request that rides inside OPEN.
        streams: most streams open at a time, each way.
        control: most that waits in the control lane before the peer is given up.
        ping_every: time between pings.
        ping_timeout: silence after a ping that ends the connection.
    """

    frame: int = MIB
    chunk: int = 32 * KIB
    quantum: int = 64 * KIB
    window: int = 256 * KIB
    window_max: int = MIB
    windows: int = 256 * MIB
    message: int = 16 * MIB
    partial: int = 64 * MIB
    inline: int = 8 * KIB
    streams: int = 4096
    control: int = 8 * MIB
    ping_every: float = 3.0
    ping_timeout: float = 5.0  # with the pause before it, time enough to be at another gateway within ten seconds
