"""Joining another cluster by the command that the API returns, with a real agent process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World
from tests.kit.eventually import eventually
from tests.kit.joining import Agent, joining
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(240)]


async def test_the_join_command_joins_once_and_for_one_cluster(platform: World, stack: Platform, tmp_path: Path, free_ports: Any) -> None:
    """The command brings the cluster ONLINE; its token is of no use to another key; a removed cluster's agent is shut out."""
    admin, kubeconfig = platform.admin, stack.layout.cluster / "gems-agent.kubeconfig"
    ports = [(free_ports.take(f"grpc{i}"), free_ports.take(f"metrics{i}")) for i in range(2)]
    await admin.post("/clusters", {"clusterId": "berlin", "cluster": {"displayName": "Berlin"}})
    join = await admin.post("/clusters/berlin/joinTokens")
    assert "kind: CustomResourceDefinition" in join["manifest"]
    async with joining(join["command"], tmp_path / "first", kubeconfig, ports[0]) as agent:
        await eventually(lambda: _online(admin), within=30, what="berlin online")
        tokens = (await admin.get("/clusters/berlin/joinTokens"))["joinTokens"]
        assert [t["state"] for t in tokens] == ["USED"]
        async with joining(join["command"], tmp_path / "thief", kubeconfig, ports[1]) as stolen:
            await eventually(lambda: "the join token was used with another key" in stolen.text(), within=30)
        assert join["token"].split(".")[1] not in agent.text() + stolen.text()
        assert await _online(admin)
        await admin.delete("/clusters/berlin")
        await eventually(lambda: _shut_out(agent), within=30, what="removed cluster shut out")
    assert (await admin.call("GET", "/clusters/berlin")).status == 404


async def _online(admin: Any) -> bool:
    return bool((await admin.get("/clusters/berlin"))["state"] == "ONLINE")


def _shut_out(agent: Agent) -> bool:
    return agent.text().count('"link.down"') >= 2  # cut off, and refused when it dialled again
