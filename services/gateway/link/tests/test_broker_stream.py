"""An agent's road to the broker: to the configured address alone, few at a time, and a clear end when it is away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from libs.tunnel import Ended, Mux, Stream
from libs.tunnel.tests.pipe import pair, refuse
from services.gateway.link.broker_stream import BrokerStreams


def tunnel(streams: BrokerStreams, uid: str = "a") -> tuple[Mux, Mux]:
    """Agent and hub; whatever the agent opens is served as its connection to the broker."""

    async def serve(stream: Stream, _header: bytes) -> None:
        await streams.serve(stream, uid)

    return pair(refuse, serve)


async def test_an_agent_may_have_a_few_and_another_cluster_its_own(eventually: Any) -> None:
    """The fifth of one cluster is refused; one that ended makes room; another cluster is not disturbed."""
    greeted = 0

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        writer.write(b"INFO {}\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(broker, "127.0.0.1", 0)
    streams = BrokerStreams(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    one, _ = tunnel(streams)
    other, _ = tunnel(streams, "b")
    opened = [one.open(b"") for _ in range(4)]
    for stream in opened:
        assert await stream.read() == b"INFO {}\r\n"
    with pytest.raises(Ended, match="too many"):
        await one.open(b"").read()
    assert await other.open(b"").read() == b"INFO {}\r\n"
    assert greeted == 5
    opened[0].end()
    assert await opened[0].read() == b""

    async def room() -> bool:
        try:
            return await one.open(b"").read() == b"INFO {}\r\n"
        except Ended:
            return False

    await eventually(room, within=5)
    one.abort("over")
    other.abort("over")
    await eventually(lambda: not streams._open, within=5, what="nothing is kept of clusters that are gone")
    server.close()


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1:1", "cannot be reached"), ("", "not served")])
async def test_no_broker_is_said(address: str, why: str) -> None:
    """An agent's stream is refused with the reason, and the tunnel lives on."""
    agent, _ = tunnel(BrokerStreams(address))
    with pytest.raises(Ended, match=why):
        await agent.open(b"").read()
    assert agent.alive
    agent.abort("over")


async def test_a_gateway_that_stops_waits_for_none(eventually: Any) -> None:
    """What would never end by itself is ended, so that draining has nothing to wait for; no more are taken."""

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(broker, "127.0.0.1", 0)
    streams = BrokerStreams(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    agent, hub = tunnel(streams)
    stream = agent.open(b"")
    assert await stream.read() == b"INFO {}\r\n"
    streams.leave()
    await eventually(lambda: not hub.streams and not agent.streams, within=5)
    with pytest.raises(Ended, match="stops"):
        await agent.open(b"").read()
    agent.abort("over")
    server.close()
