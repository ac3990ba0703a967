"""`python -m deploy.local`: what a person sees of the starter. The hub alone; the member cluster is the e2e tests' matter."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.local.kubectl import Kubectl
from deploy.local.layout import Layout
from tests.kit.cluster import Cluster
from tests.kit.eventually import timescale

pytestmark = pytest.mark.timeout(240)
Eventually = Callable[..., Awaitable[Any]]
_HUB = {"postgresql", "nats", "gateway", "msgbus", "worker"}


@dataclass
class Starter:
    """A starter in a process of its own."""

    layout: Layout
    process: asyncio.subprocess.Process | None = None
    output: Path = field(init=False)

    def __post_init__(self) -> None:
        self.output = self.layout.root.with_name("output")

    async def run(self, **env: str) -> None:
        """Starts it."""
        with self.output.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "deploy.local", "run", "--state", str(self.layout.root)),
                stdout=output,
                stderr=output,
                env=os.environ | {"KUBEGEMS_LOCAL_CLUSTER": "0", "KUBEGEMS_LOCAL_PORTS": "any"} | env,
            )

    async def ready(self, within: float = 60.0) -> Mapping[str, Any]:
        """Waits until the hub is ready; its endpoints."""
        assert self.process
        async with asyncio.timeout(within * timescale()):
            while "the hub is ready" not in self.text():
                assert self.process.returncode is None, self.text()
                await asyncio.sleep(0.1)
        return self.endpoints()

    async def ended(self, within: float = 60.0) -> int:
        """Its exit code."""
        assert self.process
        async with asyncio.timeout(within * timescale()):
            return await self.process.wait()

    def text(self) -> str:
        """All that it has said."""
        return self.output.read_text() if self.output.exists() else ""

    def endpoints(self) -> Mapping[str, Any]:
        """The content of endpoints.json."""
        return dict(json.loads(self.layout.endpoints.read_text()))

    async def verb(self, name: str) -> tuple[int, str]:
        """Another verb on the same stack: exit code and output."""
        command = (sys.executable, "-m", "deploy.local", name, "--state", str(self.layout.root))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        output, _ = await asyncio.wait_for(process.communicate(), 120 * timescale())
        return process.returncode or 0, output.decode()


@pytest.fixture
async def starter(tmp_path: Path) -> AsyncIterator[Starter]:
    """A stack that is not yet started; nothing of it stays."""
    found = Starter(Layout(tmp_path / "state"))
    yield found
    if found.process and found.process.returncode is None:
        found.process.terminate()
        await found.ended(120)
    found.layout.remove()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _sign_in(endpoints: Mapping[str, Any]) -> int:
    """Status of the admin's sign-in with the password of the file."""
    context = ssl.create_default_context(cafile=endpoints["ca"])
    body = {"username": "admin", "password": Path(endpoints["admin_password_file"]).read_text().strip()}
    async with aiohttp.ClientSession() as session, session.post(endpoints["rest"] + "/api/v1/sessions", json=body, ssl=context) as reply:
        return reply.status


async def test_a_hub_starts_tells_heals_and_leaves_nothing(starter: Starter, eventually: Eventually) -> None:
    """Facts are published and true, a killed part comes back, a second start is refused, stop leaves no process and no fact."""
    await starter.run()
    endpoints = await starter.ready()
    assert set(endpoints["pids"]) >= _HUB | {"starter"}
    assert all(_alive(pid) for pid in endpoints["pids"].values())
    password = Path(endpoints["admin_password_file"])
    assert password.stat().st_mode & 0o077 == 0
    assert password.read_text().strip() in starter.text()
    assert await _sign_in(endpoints) == 200
    code, shown = await starter.verb("status")
    assert (code, all(name in shown for name in _HUB)) == (0, True), shown
    code, shown = await starter.verb("run")
    assert (code, f"runs already (pid {endpoints['pids']['starter']})" in shown) == (1, True), shown
    await _heals(starter, eventually, "msgbus", endpoints["pids"]["msgbus"])
    sockets = Path((starter.layout.root / "sockets").read_text())
    pids = starter.endpoints()["pids"].values()
    assert sockets.exists()
    code, shown = await starter.verb("stop")
    assert code == 0, shown
    assert await starter.ended() == 0, starter.text()
    assert not [pid for pid in pids if _alive(pid)]
    assert not any(path.exists() for path in (starter.layout.endpoints, starter.layout.env, starter.layout.status, sockets))
    assert (await starter.verb("status"))[0] == 3


async def _heals(starter: Starter, eventually: Eventually, part: str, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: starter.endpoints()["pids"].get(part, pid) != pid, within=30, what=f"{part} has a new process")
    await eventually(lambda: f"{part} is back" in starter.text(), within=30, what=f"{part} is back")
    assert f"{part} was killed by signal 9" in starter.text()


async def test_a_killed_starter_takes_its_children_and_the_data_survives(starter: Starter, eventually: Eventually) -> None:
    """After `kill -9` of the starter nothing runs; the next start is quick, moves in, and the same password still signs in."""
    await starter.run()
    endpoints = await starter.ready()
    pids = endpoints["pids"]
    os.kill(pids["starter"], signal.SIGKILL)
    assert await starter.ended() == -signal.SIGKILL
    await eventually(lambda: not [name for name, pid in pids.items() if _alive(pid)], within=10, what="children of a killed starter end")
    assert (await starter.verb("status"))[0] == 3
    starter.output.unlink()
    since = time.monotonic()
    await starter.run()
    endpoints = await starter.ready(within=20)
    print(f"second start of the hub: {time.monotonic() - since:.1f} s of 20 s")
    assert await _sign_in(endpoints) == 200
    code, shown = await starter.verb("admin-password")
    assert (code, Path(endpoints["admin_password_file"]).read_text().strip() in shown) == (0, True), shown
    assert await _sign_in(endpoints) == 200
    starter.process.terminate()  # type: ignore[union-attr] # it runs
    assert await starter.ended() == 0


async def test_a_busy_port_is_one_clear_line(starter: Starter) -> None:
    """A port that must be this one and is taken ends the start, says which, and leaves nothing running."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        await starter.run(KUBEGEMS_LOCAL_PORTS=f"rest={port}")
        assert await starter.ended() == 1
    errors = [line for line in starter.text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"port {port} (rest) is in use" in errors[0]
    assert "Traceback" not in starter.text()


async def test_a_part_that_cannot_start_is_one_clear_line(starter: Starter) -> None:
    """A wrong setting of a service ends the start with what it complained about and its log file; nothing stays."""
    await starter.run(KUBEGEMS_WORKER_NO_SUCH="1")
    assert await starter.ended(90) == 1
    errors = [line for line in starter.text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1, starter.text()
    assert "worker ended with code 2" in errors[0]
    assert "KUBEGEMS_WORKER_NO_SUCH: no such setting" in errors[0]
    assert str(starter.layout.logs / "worker.log") in errors[0]
    assert not starter.layout.endpoints.exists()


@pytest.mark.cluster
async def test_an_existing_cluster_becomes_local(starter: Starter, cluster: Cluster) -> None:
    """With KUBEGEMS_LOCAL_KUBECONFIG no control plane is started; the given cluster joins and answers through the hub."""
    await starter.run(KUBEGEMS_LOCAL_CLUSTER="1", KUBEGEMS_LOCAL_KUBECONFIG=str(cluster.kubeconfig))
    await starter.ready()
    async with asyncio.timeout(60 * timescale()):
        while "the cluster `local` has joined" not in starter.text():
            assert starter.process
            assert starter.process.returncode is None, starter.text()
            await asyncio.sleep(0.1)
    endpoints = starter.endpoints()
    assert endpoints["clusters"]["local"]["kubeconfig"] == endpoints["kubeconfig"] == str(cluster.kubeconfig)
    assert set(endpoints["pids"]) == _HUB | {"starter", "agent", "controller"}
    through = await Kubectl(Path(endpoints["hub_kubeconfig"]))("get", "nodes", "-o", "name")
    assert through == await cluster.kubectl("get", "nodes", "-o", "name") != ""


async def test_a_wrong_number_of_clusters_is_one_clear_line(starter: Starter) -> None:
    """Nonsense ends the start before anything runs."""
    await starter.run(KUBEGEMS_LOCAL_CLUSTER="1", CLUSTERS="two")
    assert await starter.ended() == 1
    assert starter.text().startswith("error: CLUSTERS=two: ")
    assert len(starter.text().splitlines()) == 1
