"""kubectl through `/k8s` to a real control plane: reads, writes, watch, logs, exec, port-forward, and the cluster's own 403s."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.link.rig import Rig, kubeconfig
from tests.kit.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
NAMESPACE = "link-shop-dev"
OPS = "gems:project:link/shop:ops"
GROUND = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: link-other}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: ops, namespace: {NAMESPACE}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "gems:operator"}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "{OPS}"}}]
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: "example/web", resources: {limits: {cpu: 100m, memory: 32Mi}}}]
"""


class Kubectl:
    """kubectl with the kubeconfig that the hub gives."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def start(self, *arguments: str, stdin: bool = False, **env: str) -> asyncio.subprocess.Process:
        """A running kubectl."""
        clean = {"PATH": os.environ["PATH"], "HOME": str(self.path.parent), **env}
        return await asyncio.create_subprocess_exec(
            "kubectl", "--kubeconfig", str(self.path), "--namespace", NAMESPACE, *arguments, env=clean,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def __call__(self, *arguments: str, stdin: str = "", **env: str) -> tuple[int, str, str]:
        """Exit code, output, complaint."""
        process = await self.start(*arguments, stdin=bool(stdin), **env)
        try:
            async with asyncio.timeout(60):
                output, complaint = await process.communicate(stdin.encode() or None)
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode or 0, output.decode(), complaint.decode()

    async def ok(self, *arguments: str, stdin: str = "", **env: str) -> str:
        """Its output; it must succeed."""
        code, output, complaint = await self(*arguments, stdin=stdin, **env)
        assert code == 0, complaint
        return output


@pytest.fixture(scope="module")
async def dev(rig: Rig, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kubectl]:
    """kubectl as `dev`, operator of one namespace, through the hub."""
    folder = tmp_path_factory.mktemp("kubectl")
    await cluster.apply(GROUND)
    async with rig.agent(str(uuid.uuid4()), cluster.kubeconfig, name="real"):
        server = f"https://localhost:{rig.edge_port}/k8s/clusters/real"
        kubectl = Kubectl(kubeconfig(folder / "config", server, rig.access.add("link-dev", OPS), rig.folder / "ca.crt"))
        await kubectl.ok("apply", "-f", "-", stdin=DEPLOYMENT)
        yield kubectl


@pytest.fixture(scope="module")
async def pod(dev: Kubectl) -> str:
    """A pod that runs."""
    await dev.ok("rollout", "status", "deployment/web", "--timeout=50s")
    return (await dev.ok("get", "pods", "-l", "app=web", "-o", "name")).split()[0]


async def test_it_knows_who_it_is(dev: Kubectl) -> None:
    """The API server sees the user and groups that the hub sent, and no others."""
    output = await dev.ok("auth", "whoami", "-o", "yaml")
    assert "username: gems:user:link-dev" in output
    groups = {line.strip(" -") for line in output.splitlines() if line.strip().startswith("- ")}
    assert groups == {OPS, "system:authenticated"}


async def test_reads_writes_and_deletes(dev: Kubectl) -> None:
    """Typed writes (protobuf), apply, server-side apply, label, patch, scale and delete work as without a hub."""
    await dev.ok("create", "configmap", "one", "--from-literal=a=1")
    await dev.ok("create", "secret", "generic", "two", "--from-literal=password=x")
    assert await dev.ok("get", "configmap", "one", "-o", "jsonpath={.data.a}") == "1"
    await dev.ok("label", "configmap", "one", "k=v")
    await dev.ok("patch", "configmap", "one", "--type=merge", "-p", '{"data":{"a":"2"}}')
    assert await dev.ok("get", "configmaps", "-l", "k=v", "-o", "jsonpath={.items[0].data.a}") == "2"
    await dev.ok("apply", "--server-side", "-f", "-", stdin=DEPLOYMENT.replace("replicas: 1", "replicas: 2"))
    await dev.ok("scale", "deployment/web", "--replicas=1")
    await dev.ok("delete", "configmap/one", "secret/two")
    code, _, complaint = await dev("get", "configmap", "one")
    assert (code, "NotFound" in complaint) == (1, True)


async def test_a_watch_sees_changes_live(dev: Kubectl) -> None:
    """Events come while the watch is open."""
    process = await dev.start("get", "configmaps", "--watch-only", "-o", "name")
    assert process.stdout is not None
    try:
        for _ in range(20):  # the watch begins somewhen; a change after that is seen
            await dev.ok("create", "configmap", "seen", "--from-literal=a=1")
            await dev.ok("delete", "configmap", "seen")
            with contextlib.suppress(TimeoutError):
                line = await asyncio.wait_for(process.stdout.readline(), 1)
                assert line.strip() == b"configmap/seen"
                return
        pytest.fail("nothing was seen")
    finally:
        process.kill()
        await process.communicate()


async def test_the_clusters_own_403s(dev: Kubectl) -> None:
    """Another namespace and cluster-wide kinds are refused by the API server's RBAC, in its words."""
    for arguments in (("get", "pods", "-n", "link-other"), ("get", "nodes"), ("create", "namespace", "x"), ("get", "secrets", "-A")):
        code, _, complaint = await dev(*arguments)
        assert code == 1
        assert 'User "gems:user:link-dev" cannot' in complaint, complaint


async def test_logs_and_follow(dev: Kubectl, pod: str) -> None:
    """Logs come, also followed, and the follower can go."""
    first = await dev.ok("logs", pod)
    assert first
    process = await dev.start("logs", "-f", pod)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 15)
    process.kill()
    await process.communicate()


@pytest.mark.parametrize("websockets", ["true", "false"])
async def test_exec_by_websocket_and_by_spdy(dev: Kubectl, pod: str, cluster: Cluster, websockets: str) -> None:
    """Exec carries input, output, a megabyte, and failure; simulated nodes pass neither the end of input nor the exit code on."""
    if not cluster.exec_works:
        pytest.skip("exec is off on this machine")
    how = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": websockets}
    assert await dev.ok("exec", pod, "--", "echo", "hello", **how) == "hello\n"
    assert await dev.ok("exec", "-i", pod, "--", "sh", stdin="echo up and down; exit\n", **how) == "up and down\n"
    assert len(await dev.ok("exec", pod, "--", "head", "-c", "1000000", "/dev/zero", **how)) == 1_000_000
    code, _, _ = await dev("exec", pod, "--", "sh", "-c", "exit 7", **how)
    assert code != 0


async def test_exec_is_refused_where_the_cluster_refuses(dev: Kubectl, cluster: Cluster) -> None:
    """A refused upgrade tells the API server's reason, by both protocols."""
    for websockets in ("true", "false"):
        code, _, complaint = await dev("exec", "-n", "link-other", "any", "--", "true", KUBECTL_REMOTE_COMMAND_WEBSOCKETS=websockets)
        assert (code, "forbidden" in complaint) == (1, True), complaint


@pytest.mark.parametrize("websockets", ["true", "false"])
async def test_port_forward(dev: Kubectl, pod: str, websockets: str) -> None:
    """A connection through the forwarded port carries bytes both ways; the simulated node sends back what it gets."""
    process = await dev.start("port-forward", pod, ":80", KUBECTL_PORT_FORWARD_WEBSOCKETS=websockets)
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert line.startswith("Forwarding from"), line
        port = int(line.split("127.0.0.1:")[1].split()[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        content = os.urandom(300_000)
        writer.write(content)
        assert await asyncio.wait_for(reader.readexactly(len(content)), 20) == content
        writer.close()
    finally:
        process.kill()
        await process.communicate()


async def test_everything_left_a_record(rig: Rig, dev: Kubectl, eventually: Any) -> None:
    """What kubectl did stands in audit by verb and class."""
    await dev.ok("get", "pods")
    await eventually(lambda: any(r.method == "kubernetes/list" and r.class_ == "READ" for r in rig.journal.records), within=5)
    assert all(r.actor == "users/link-dev" for r in rig.journal.records if r.request.get("namespace") == NAMESPACE)
