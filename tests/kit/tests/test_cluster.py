"""The kit's cluster is a real API server whose simulated nodes run pods."""

from __future__ import annotations

import pytest

from deploy.local.errors import LocalError
from deploy.local.kubectl import Kubectl
from tests.kit.cluster import Cluster

pytestmark = pytest.mark.cluster


async def test_pods_run_and_speak(cluster: Cluster) -> None:
    """A Deployment rolls out; its pod has logs, and exec runs as an account that sees neither our files nor our environment."""
    await cluster.kubectl("create", "namespace", "kit")
    await cluster.kubectl("create", "deployment", "web", "--image=web", "-n", "kit")
    await cluster.kubectl("rollout", "status", "deployment/web", "-n", "kit", "--timeout=30s", within=35)
    assert "simulated" in await cluster.kubectl("logs", "deploy/web", "-n", "kit")
    if cluster.exec_works:
        said = await cluster.kubectl("exec", "deploy/web", "-n", "kit", "--", "env")
        assert {line.partition("=")[0] for line in said.split()} <= {"PATH", "PWD", "OLDPWD"}
        processes = await cluster.kubectl("exec", "deploy/web", "-n", "kit", "--", "sh", "-c", "cat /proc/[0-9]*/comm")
        assert "kwok" in processes or "3" in processes.split()
        assert "controlplane" not in processes
        with pytest.raises(LocalError, match=r"(?i)permission denied|no such file"):
            await cluster.kubectl("exec", "deploy/web", "-n", "kit", "--", "cat", str(cluster.kubeconfig))
    await cluster.kubectl("delete", "namespace", "kit", "--wait=false")


async def test_accounts_are_limited(cluster: Cluster) -> None:
    """The agent's ServiceAccount may read what it watches and may not read secrets, which the admin can."""
    agent = Kubectl(await cluster.service_account_kubeconfig("gems-agent"))
    assert "gems-agent" in await agent("auth", "whoami")
    assert await cluster.kubectl("get", "secrets", "-A") is not None
    with pytest.raises(LocalError, match=r"(?i)forbidden"):
        await agent("get", "secrets", "-A")
