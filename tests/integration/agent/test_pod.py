"""An agent in a pod: its folder goes with the pod, its identity does not, and of two pods one works."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from deploy.local.errors import LocalError
from deploy.local.health import until_serving
from deploy.local.ports import Ports
from tests.integration.agent.conftest import Hub
from tests.kit.cluster import Cluster
from tests.kit.eventually import timescale
from tests.kit.joining import joining

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
STATE = {"KUBEGEMS_AGENT_CLUSTER_STATE": "true"}


async def test_another_pod_goes_on_with_the_same_identity(
    hub: Hub, cluster: Cluster, tmp_path: Path, free_ports: Ports, eventually: Any
) -> None:
    """The second stands by in silence; when the first is killed it takes over without joining, though its folder was empty."""
    join = await hub.token("pods", one_port=False)
    account = await cluster.service_account_kubeconfig("gems-agent")
    ports = [(free_ports.take(f"pod{i}"), free_ports.take(f"pod{i}-metrics")) for i in range(2)]

    async def online() -> bool:
        return bool((await hub.admin.get("/clusters/pods"))["state"] == "ONLINE")

    try:
        async with joining(join["command"], tmp_path / "first", account, ports[0], **STATE) as first:
            await eventually(online, within=30, what="online")
            async with joining(join["command"], tmp_path / "second", account, ports[1], **STATE) as second:
                async with asyncio.timeout(30 * timescale()):
                    await until_serving(ports[1][0], "agent", None)  # a pod that stands by is healthy
                assert "link.up" not in second.text()
                os.killpg(first.group, signal.SIGKILL)
                await eventually(lambda: "link.up" in second.text(), within=40, what="taken over after kill -9")
                await eventually(online, within=10)
                assert "agent.joined" in first.text()
                assert "agent.joined" not in second.text()
    finally:
        for kind in ("secret", "configmap", "lease"):
            await cluster.kubectl("delete", kind, "gems-agent", "--namespace", "kubegems-system", "--ignore-not-found")
    with pytest.raises(LocalError):
        await cluster.kubectl("get", "secret", "gems-agent", "--namespace", "kubegems-system")
