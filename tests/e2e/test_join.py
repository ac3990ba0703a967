"""Joining another cluster by the command that the API returns, with a real agent process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World
from tests.kit.eventually import eventually
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def joining(command: str, home: Path, kubeconfig: Path, ports: tuple[int, int]) -> AsyncIterator[Path]:
    """Runs the command as its reader would, in a home of its own; the path of its log."""
    home.mkdir()
    log = home / "agent.log"
    env = {
        "HOME": str(home),
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "KUBECONFIG": str(kubeconfig),
        "KUBEGEMS_AGENT_GRPC_PORT": str(ports[0]),
        "KUBEGEMS_AGENT_METRICS_PORT": str(ports[1]),
    }
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", command), cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            await process.wait()


async def test_the_join_command_joins_once_and_for_one_cluster(platform: World, stack: Platform, tmp_path: Path, free_ports: Any) -> None:
    """The command brings the cluster ONLINE; its token is of no use to another key; a removed cluster's agent is shut out."""
    admin, kubeconfig = platform.admin, stack.layout.cluster / "gems-agent.kubeconfig"
    ports = [(free_ports.take(f"grpc{i}"), free_ports.take(f"metrics{i}")) for i in range(2)]
    await admin.post("/clusters", {"clusterId": "berlin", "cluster": {"displayName": "Berlin"}})
    join = await admin.post("/clusters/berlin/joinTokens")
    assert "kind: CustomResourceDefinition" in join["manifest"]
    async with joining(join["command"], tmp_path / "first", kubeconfig, ports[0]) as log:
        await eventually(lambda: _online(admin), within=30, what="berlin online")
        tokens = (await admin.get("/clusters/berlin/joinTokens"))["joinTokens"]
        assert [t["state"] for t in tokens] == ["USED"]
        async with joining(join["command"], tmp_path / "thief", kubeconfig, ports[1]) as stolen:
            await eventually(lambda: "the join token was used with another key" in stolen.read_text(), within=30)
        assert join["token"].split(".")[1] not in log.read_text() + stolen.read_text()
        assert await _online(admin)
        await admin.delete("/clusters/berlin")
        await eventually(lambda: _shut_out(log), within=30, what="removed cluster shut out")
    assert (await admin.call("GET", "/clusters/berlin")).status == 404


async def _online(admin: Any) -> bool:
    return bool((await admin.get("/clusters/berlin"))["state"] == "ONLINE")


def _shut_out(log: Path) -> bool:
    return log.read_text().count('"link.down"') >= 2  # cut off, and refused when it dialled again
