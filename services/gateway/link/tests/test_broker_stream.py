"""An agent's road to the broker: to the configured address alone, few at a time, and a clear end when it is away."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kubegems.agent.v1 import tunnel_pb2
from libs.tunnel import Ended, Mux, Reset, Stream
from libs.tunnel.tests.pipe import pair, refuse
from services.gateway.link import arrivals
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


async def _listener(dialled: list[str], name: str) -> tuple[asyncio.Server, str]:
    """Somebody who greets, and notes that somebody came."""

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.append(name)
        writer.write(name.encode())
        await reader.read()
        writer.close()

    server = await asyncio.start_server(came, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _header(purpose: int, *, body: bytes) -> bytes:
    """A stream's header as somebody writes it who does not keep to the protos: field by field."""
    return bytes((purpose << 3 | 2, len(body))) + body


async def test_no_header_leads_anywhere_but_to_the_configured_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in the header, at any place, or a purpose that is none is refused and nobody is dialled; without, it is our broker."""
    dialled: list[str] = []
    broker, ours = await _listener(dialled, "broker")
    other, theirs = await _listener(dialled, "other")
    known = SimpleNamespace(uid="a", protocol=2, address="")
    monkeypatch.setattr(arrivals, "cluster_of", lambda _: "a")
    desk = arrivals.Arrivals(
        cast("Any", None), cast("Any", SimpleNamespace(of=lambda *_: known)), pipeline=cast("Any", None), broker=BrokerStreams(ours),
        figures=cast("Any", None),
    )  # fmt: skip
    serve = desk._from_agent(cast("Any", SimpleNamespace(certificate=lambda: None, mux=None)))
    agent, _ = pair(refuse, serve)
    address = theirs.encode()
    field = tunnel_pb2.StreamHeader.BROKER_FIELD_NUMBER
    hostile = [_header(field, body=_header(number, body=address)) for number in (1, 2, 15)]
    hostile += [_header(number, body=address) for number in (6, 7, 8, 9, 12, 15)] + [b"", address]
    hostile += [tunnel_pb2.StreamHeader(go_away=tunnel_pb2.GoAway(reason=theirs)).SerializeToString()]
    for header in hostile:
        with pytest.raises(Ended) as refused:
            await asyncio.wait_for(agent.open(header).read(), 5)
        assert refused.value.code in (Reset.REFUSED, Reset.BROKEN)
    assert dialled == []
    honest = tunnel_pb2.StreamHeader(broker=tunnel_pb2.BrokerHeader()).SerializeToString()
    assert await agent.open(honest).read() == b"broker"
    assert dialled == ["broker"]
    agent.abort("over")
    broker.close()
    other.close()
