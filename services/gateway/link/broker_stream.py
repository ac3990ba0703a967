"""The agent's connection to the message broker, carried by its tunnel: bytes to NATS and back, and to nowhere else.

Where to is the gateway's own setting, never the agent's word. TLS goes from the agent to NATS, so the broker sees the
agent's certificate and asks the auth callout as on its own port; the gateway sees neither keys nor messages. Each direction
has the stream's credit, and takes its turn among the tunnel's other bulk streams.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from libs import log
from libs.tunnel import Reset, Stream
from libs.tunnel.joined import PIECE, joined

_CONNECT_SECONDS = 5.0
_MOST = 4  # connections of one cluster at a time: one that works, others that are on their way out
_log = log.get("services.gateway.link")


class BrokerStreams:
    """Serves such streams.

    Args:
        address: `host:port` of the broker; empty: nothing is served.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port or 0)
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False

    async def serve(self, stream: Stream, uid: str) -> None:
        """One connection of a cluster's agent, until either end closes it."""
        if not self._port or self._leaving or self._open[uid] >= _MOST:
            why = "not served" if not self._port else "the gateway stops" if self._leaving else "too many connections to the broker"
            stream.reset(Reset.REFUSED, why)
            return
        self._open[uid] += 1
        carrying = asyncio.create_task(self._carried(stream), name=f"broker of {uid}")
        self._tasks.add(carrying)
        try:
            await asyncio.wait({carrying})
        finally:
            carrying.cancel()
            self._tasks.discard(carrying)
            self._open[uid] -= 1
            if not self._open[uid]:
                del self._open[uid]

    def leave(self) -> None:
        """Ends all and takes no more: they would never end by themselves, and come back over the agent's next tunnel."""
        self._leaving = True
        for task in self._tasks:
            task.cancel()

    async def _carried(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=2 * PIECE)
        except (OSError, TimeoutError) as error:
            _log.warning("broker_stream.away", error=repr(error))
            stream.reset(Reset.REFUSED, "the broker cannot be reached")
            return
        await joined(stream, reader, writer)
