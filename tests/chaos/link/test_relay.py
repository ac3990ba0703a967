"""The relay does to a connection what it says, in a namespace and without one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.chaos.link import network as networks
from tests.chaos.link.network import AGENTS, HUB, Loopback, network
from tests.chaos.link.relay import Relay, Route


async def _not_allowed(*_: str) -> None:
    raise OSError("not allowed")


@pytest.fixture(params=["as here", "no namespaces"])
async def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loopback]:
    """Where the relay stands: what this machine allows, and what is left when it allows nothing."""
    if request.param == "no namespaces":
        monkeypatch.setattr(networks, "_ip", _not_allowed)
    async with network() as found:
        yield found


class Line:
    """A client of an echo behind the relay."""

    def __init__(self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.relay, self.reader, self.writer = relay, reader, writer

    async def echo(self, content: bytes, *, within: float = 10) -> bytes:
        """What comes back of what is sent."""
        self.writer.write(content)
        return await asyncio.wait_for(self.reader.readexactly(len(content)), within)


@pytest.fixture
async def line(place: Loopback) -> AsyncIterator[Line]:
    """A connection through the relay."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1000):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, place.hub, 0)
    relay = Relay(place)
    await relay.open(Route("echo", (place.hub, server.sockets[0].getsockname()[1])))
    reader, writer = await asyncio.open_connection(*relay.ports["echo"])
    found = Line(relay, reader, writer)
    assert await found.echo(b"hello") == b"hello"
    yield found
    writer.close()
    await relay.close()
    server.close()


async def test_it_delays(line: Line) -> None:
    """There and back takes at least twice the shortest delay."""
    line.relay.delay = 0.2
    begun = asyncio.get_running_loop().time()
    assert await line.echo(b"slow") == b"slow"
    assert asyncio.get_running_loop().time() - begun >= 2 * 0.2 * 0.7


@pytest.mark.parametrize("cables", [(AGENTS,), (HUB,), (AGENTS, HUB)])
async def test_what_is_unplugged_loses_silently(line: Line, cables: tuple[str, ...]) -> None:
    """Nothing comes through and nobody is told; when the cable is in again, TCP brings it after all."""
    await line.relay.unplug(*cables)
    line.writer.write(b"lost")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.reader.readexactly(1), 1)
    assert not line.reader.at_eof()
    await line.relay.plug()
    assert await asyncio.wait_for(line.reader.readexactly(4), 20) == b"lost"


async def test_what_stalls_is_not_lost(line: Line) -> None:
    """It waits."""
    line.relay.stall()
    line.writer.write(b"wait")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.reader.readexactly(1), 0.5)
    line.relay.flow()
    assert await asyncio.wait_for(line.reader.readexactly(4), 10) == b"wait"


async def test_it_cuts_and_refuses(line: Line) -> None:
    """The connection ends; while the route is refused the next one does too."""
    line.relay.refused = {"echo"}
    assert line.relay.cut() == 1
    for reader in (line.reader, (await asyncio.open_connection(*line.relay.ports["echo"]))[0]):
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(1), 10) == b""
    line.relay.refused = set()
    line.reader, line.writer = await asyncio.open_connection(*line.relay.ports["echo"])
    assert await line.echo(b"again") == b"again"


async def test_without_namespaces_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is skipped in silence."""
    monkeypatch.setattr(networks, "_ip", _not_allowed)
    async with network() as place:
        assert not place.kernel
    assert "NOTE: no network namespace here (not allowed)" in capsys.readouterr().out
