"""NATS through the tunnel, for networks where an agent reaches the hub's HTTPS port alone.

The NATS client connects to a port of the loopback; each connection becomes a stream of the tunnel, which the hub joins with
its broker and with nothing else. TLS goes from the client to the broker, so a neighbour on the loopback gets no further
than the broker's own door.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.faults import Fault
from libs.tunnel import Stream, StreamEnded
from libs.tunnel.joined import PIECE, joined

BROKER_NAME = "nats.hub.kubegems.internal"  # what the hub's CA must have certified, whatever address it is reached at
_WAIT_SECONDS = 4.0  # less than the client waits for the broker's first word
_log = log.get(__name__)


class Opens(Protocol):
    """The agent's link, as far as it is needed here."""

    async def open(self, header: tunnel_pb2.StreamHeader, timeout: float) -> Stream:
        """A stream to the hub."""
        ...


class BrokerRoad:
    """The loopback's end.

    Attributes:
        link: opens the streams; set once there is one.
    """

    def __init__(self) -> None:
        self.link: Opens | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listens; `host:port` for the NATS client."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=2 * PIECE)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Ends all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection is served by a task"
        self._open.add(task)
        try:
            if self.link is not None:
                header = tunnel_pb2.StreamHeader(broker=tunnel_pb2.BrokerHeader())
                await joined(await self.link.open(header, _WAIT_SECONDS), reader, writer)
        except (Fault, StreamEnded) as error:
            _log.warning("broker.no_road", error=str(error))
        finally:
            self._open.discard(task)
            writer.transport.abort()
