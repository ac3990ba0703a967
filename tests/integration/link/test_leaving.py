"""A gateway that is about to stop: its agents go elsewhere, what is open ends by itself or is told why it is broken off."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kubegems.agent.v1 import inventory_service_pb2
from libs.crypt.ca import Authority
from libs.rpc.call import Call
from libs.tunnel.calls import Stopping
from libs.tunnel.kubernetes import Request
from services.gateway.link.exchange import Exchange
from tests.integration.link.rig import DEV, GET_INVENTORY, Agent, Rig, kubeconfig
from tests.integration.link.upstream import Came, upstream

ASKED = inventory_service_pb2.GetInventoryRequest()


async def ticking(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Events for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"2\r\n.\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.fixture(params=["tcp", "websocket"])
async def leaving(request: pytest.FixtureRequest, hub_ca: Authority, tmp_path: Path) -> AsyncIterator[tuple[Rig, Rig, Agent]]:
    """A gateway that an agent is at, another one that the agent knows too, and the agent; over either carrier."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with Rig(tmp_path / "a", hub_ca).running() as first, Rig(tmp_path / "b", hub_ca).running() as second, upstream() as up:
        up.answer = ticking
        config = kubeconfig(tmp_path / "k", up.url)
        async with first.agent(str(uuid.uuid4()), config, carrier=request.param) as agent:
            elsewhere = f"127.0.0.1:{second.port}" if request.param == "tcp" else f"https://127.0.0.1:{second.edge_port}"
            agent.link._hubs._addresses += (elsewhere,)
            yield first, second, agent


async def test_calls_end_well_while_the_agent_is_elsewhere_already(leaving: tuple[Rig, Rig, Agent], eventually: Any) -> None:
    """The agent dials the other gateway at once; what it was asked before is answered over the old tunnel."""
    first, second, agent = leaving
    release = asyncio.Event()

    async def slowly(call: Call) -> str:
        await release.wait()
        return "done"

    agent.inventory.answer = slowly
    asking = asyncio.create_task(first.links.call(agent.uid, GET_INVENTORY, ASKED, DEV))
    await asyncio.sleep(0.1)
    await first.links.go_away()
    await eventually(lambda: second.links.online(agent.uid), within=3, what="at the other gateway")
    draining = asyncio.create_task(first.links.drain(10))
    await asyncio.sleep(0.1)
    assert not asking.done()
    release.set()
    assert (await asking).inventory.kubernetes_version == "done"
    async with asyncio.timeout(5):
        await draining
    assert (await second.links.call(agent.uid, GET_INVENTORY, ASKED, DEV)).inventory.kubernetes_version == "done"


async def test_what_does_not_end_is_broken_off_with_a_reason(leaving: tuple[Rig, Rig, Agent]) -> None:
    """At the deadline, and not with the words of a lost tunnel."""
    first, _, agent = leaving
    async with await first.links.kubernetes(agent.uid, Request("GET", "/api/v1/pods", "watch=1"), None, DEV) as watch:
        await watch.read()
        await first.links.go_away()
        async with asyncio.timeout(5):
            await first.links.drain(0.5)
            with pytest.raises(Stopping, match="restarted"):
                await _to_its_end(watch)
        assert watch.stopped


@pytest.mark.parametrize("carrier", ["tcp", "websocket"])
async def test_new_tunnels_are_refused(hub_ca: Authority, tmp_path: Path, carrier: str) -> None:
    """An agent that knows no other gateway stays where it is and works; one that comes anew is refused."""
    async with Rig(tmp_path, hub_ca).running() as alone, upstream() as up:
        config = kubeconfig(tmp_path / "k", up.url)
        async with alone.agent(str(uuid.uuid4()), config, carrier=carrier) as agent:
            await alone.links.go_away()
            async with alone.agent(str(uuid.uuid4()), config, carrier=carrier, online=False) as stranger:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.5):
                        await stranger.link.wait_connected()
            assert (await alone.links.call(agent.uid, GET_INVENTORY, ASKED, DEV)).inventory.kubernetes_version == DEV.user


async def test_alone_it_stops_at_once_when_nothing_is_open(hub_ca: Authority, tmp_path: Path) -> None:
    """Without another gateway nobody is waited for."""
    config = kubeconfig(tmp_path / "k", "http://127.0.0.1:1")
    async with Rig(tmp_path, hub_ca).running() as alone, alone.agent(str(uuid.uuid4()), config):
        await alone.links.go_away()
        async with asyncio.timeout(2):
            await alone.links.drain(30)


async def _to_its_end(exchange: Exchange) -> None:
    while await exchange.read():
        pass
