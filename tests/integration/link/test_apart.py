"""Hub and agent whose clocks or versions are apart work together."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kubegems.agent.v1 import desired_state_service_pb2, inventory_service_pb2
from libs.clock import SystemClock
from libs.crypt.ca import Authority
from libs.tunnel.kubernetes import Request
from tests.integration.link.rig import DEV, FETCH, GET_INVENTORY, Rig, kubeconfig
from tests.integration.link.upstream import upstream

_OLD, _NOW, _NEXT = (1,), (2, 1), (3, 2)


class Shifted(SystemClock):
    """A clock that is wrong."""

    def __init__(self, by: timedelta) -> None:
        self.by = by

    def now(self) -> datetime:
        """The wrong time."""
        return super().now() + self.by


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_clocks_ten_minutes_apart(tmp_path: Path, hub_ca: Authority, minutes: int, eventually: Any) -> None:
    """Calls and Kubernetes requests work, since the agent judges in hub time; the skew is measured at the hub."""
    rig = Rig(tmp_path, hub_ca, clock=Shifted(timedelta(minutes=minutes)))
    async with rig.running(), upstream() as up:
        uid = str(uuid.uuid4())
        async with rig.agent(uid, kubeconfig(tmp_path / "k", up.url)) as agent:
            ask = inventory_service_pb2.GetInventoryRequest()
            assert (await rig.links.call(uid, GET_INVENTORY, ask, DEV, 5)).inventory.kubernetes_version == DEV.user
            async with await rig.links.kubernetes(uid, Request("GET", "/api/v1/pods"), None, DEV) as exchange:
                assert exchange.status == 200
            await eventually(lambda: rig.links.measures()[uid].round_trip > 0, within=5, what="a ping")
            measured = rig.links.measures()[uid]
            assert abs(measured.clock_skew + minutes * 60) < 2
            assert measured.heard < 5
            assert agent.link.connected


@pytest.mark.parametrize(
    ("hub", "agent", "spoken"), [(_NOW, _OLD, "1"), (_OLD, _NOW, "1"), (_NOW, _NOW, "2"), (_NEXT, _NOW, "2")],
    ids=["agent behind", "hub behind", "same", "hub ahead"],
)  # fmt: skip
async def test_one_version_apart(tmp_path: Path, hub_ca: Authority, hub: Sequence[int], agent: Sequence[int], spoken: str) -> None:
    """The newest version that both speak is used, and what the hub serves knows it."""
    async with Rig(tmp_path, hub_ca, protocols=hub).running() as rig:
        uid = str(uuid.uuid4())
        async with rig.agent(uid, kubeconfig(tmp_path / "k", "http://127.0.0.1:9"), protocols=agent) as running:
            ask = inventory_service_pb2.GetInventoryRequest()
            assert (await rig.links.call(uid, GET_INVENTORY, ask, DEV, 5)).inventory.kubernetes_version == DEV.user
            await running.link.call(FETCH, desired_state_service_pb2.FetchDesiredStateRequest(), 5)
            assert rig.desired.protocols == [spoken]


async def test_two_versions_apart_are_refused(tmp_path: Path, hub_ca: Authority) -> None:
    """Neither end goes on as if it understood."""
    async with Rig(tmp_path, hub_ca, protocols=_NEXT).running() as rig:
        uid = str(uuid.uuid4())
        async with rig.agent(uid, kubeconfig(tmp_path / "k", "http://127.0.0.1:9"), protocols=_OLD, online=False) as running:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await running.link.wait_connected()
            assert not rig.links.online(uid)
