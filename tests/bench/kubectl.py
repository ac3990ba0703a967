"""kubectl through the hub against kubectl directly, and what an idle agent costs, on a whole platform of its own.

`get pods -A` of 5,000 pods and `get namespaces`: wall time of the whole command, pairs of interleaved rounds. The agent of an otherwise
empty cluster: proportional set size, and CPU over 60 s. `python -m tests.bench kubectl` prints one JSON line per bar.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from libs.kube import KubeClient
from libs.kube.connection import Connection
from libs.kube.resources import PODS
from tests.kit.kubectl import Kubectl
from tests.kit.platform import Platform, platform
from tests.kit.rest import nobody

PODS_MADE, ROUNDS, IDLE_SECONDS = 5_000, 7, 60.0
_AT_ONCE = 32
_SETTLE = 10.0  # seconds in which those who watch take in what was made
_NAMESPACE = "bench"
_OUT = sys.stdout


def _print(name: str, ratio: float, goal: float, what: str) -> None:
    line = {"bar": name, "ratio": round(ratio, 2), "goal": goal, "better": "lower", "samples": ROUNDS, "what": what}
    _OUT.write(json.dumps(line, ensure_ascii=False) + "\n")
    _OUT.flush()


def _say(line: str) -> None:
    sys.stderr.write(f"bench: {line}\n")


async def _idle_agent(pid: int) -> None:
    await asyncio.sleep(_SETTLE)  # first lists and reports are over
    before = _cpu_seconds(pid)
    await asyncio.sleep(IDLE_SECONDS)
    share = (_cpu_seconds(pid) - before) / IDLE_SECONDS
    size = _pss(pid)
    _print("agent_idle_cpu", share * 100, 1, f"percent of a core over {IDLE_SECONDS:.0f} s, base watches, tunnel and NATS standing")
    _print("agent_idle_pss", size / 1e6, 110, "MB; 80 is the aim")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


async def _fill(kubeconfig: Path, kubectl: Kubectl) -> None:
    """Pods that sit on no node, so that nothing touches them while they are listed."""
    (await kubectl("create", "namespace", _NAMESPACE)).ok()
    client = KubeClient(await Connection.from_kubeconfig(kubeconfig))
    names = iter(range(PODS_MADE))
    containers = [{"name": "web", "image": "example/web:1", "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}}}]
    spec = {"containers": containers, "schedulerName": "nobody", "automountServiceAccountToken": False}

    async def lane() -> None:
        for number in names:
            metadata: dict[str, Any] = {"name": f"web-{number:05}", "namespace": _NAMESPACE, "labels": {"app": "web"}}
            await client.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, _NAMESPACE)

    await asyncio.gather(*(lane() for _ in range(_AT_ONCE)))
    await client.close()


async def _pairs(name: str, direct: Kubectl, hub: Kubectl, *arguments: str) -> None:
    pairs = [(await _seconds(hub, *arguments), await _seconds(direct, *arguments)) for _ in range(ROUNDS + 1)][1:]  # the first fills caches
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    _print(name, ratio, 1.3, f"kubectl {' '.join(arguments)}, through the hub / directly: {ours * 1000:.0f} / {theirs * 1000:.0f} ms")


async def _seconds(kubectl: Kubectl, *arguments: str) -> float:
    start = time.perf_counter()
    (await kubectl(*arguments)).ok()
    return time.perf_counter() - start


async def _online(running: Platform, home: Path) -> Path:
    """The kubeconfig that the hub gives its admin, once the cluster is there."""
    ends = running.endpoints
    async with nobody(ends["rest"], Path(ends["ca"])) as anyone, asyncio.timeout(120):
        admin = await anyone.sign_in("admin", Path(ends["admin_password_file"]).read_text().strip())
        while (await admin.get("/clusters/local"))["state"] != "ONLINE":
            await asyncio.sleep(0.5)
        written = home / "hub.kubeconfig"
        written.touch(0o600)
        written.write_text(str((await admin.call("GET", "/clusters/local:kubeconfig")).ok()))
        return written


async def measure(folder: Path) -> None:
    """Starts a platform, and runs the bars."""
    for name in ("platform", "home"):
        (folder / name).mkdir(mode=0o700)
    async with platform(folder / "platform", jaeger=False) as running:
        through, own = await _online(running, folder / "home"), Path(running.endpoints["kubeconfig"])
        _say(f"an idle agent for {IDLE_SECONDS:.0f} s")
        await _idle_agent(running.pid("agent"))
        direct, hub = Kubectl(own, folder / "home"), Kubectl(through, folder / "home")
        await _pairs("kubectl_namespaces", direct, hub, "get", "namespaces")
        _say(f"making {PODS_MADE} pods")
        await _fill(own, direct)
        await asyncio.sleep(_SETTLE)
        await _pairs("kubectl_pods", direct, hub, "get", "pods", "-A")


def main() -> None:
    """Measures in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        uvloop.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
