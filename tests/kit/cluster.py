"""A Kubernetes cluster for tests: the local control plane with simulated nodes, ready to join."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.local import build
from deploy.local import part as parts
from deploy.local.control import ControlPlane
from deploy.local.errors import LocalError
from deploy.local.kubectl import Kubectl
from deploy.local.kwok import Kwok
from deploy.local.member import Member
from deploy.local.ports import Ports
from deploy.local.process import Process

_MARKER = ("kube-system", "kubegems-test-cluster")


@dataclass(slots=True)
class Cluster:
    """The run's cluster; CRDs and the join manifest are applied.

    Attributes:
        kubeconfig: its admin's.
        processes: by part name; empty when the cluster is not ours.
        exec_works: whether `kubectl exec` answers.
    """

    kubeconfig: Path
    member: Member
    processes: dict[str, Process] = field(default_factory=dict)
    exec_works: bool = True

    @property
    def kubectl(self) -> Kubectl:
        """Kubectl as its admin: `await cluster.kubectl("get", "pods")`."""
        return self.member.kubectl

    async def apply(self, manifest: str) -> None:
        """Server-side apply as its admin."""
        await self.kubectl.apply(manifest)

    async def service_account_kubeconfig(self, name: str) -> Path:
        """A kubeconfig of `gems-agent` or `gems-controller`, as the join manifest made them."""
        return await self.member.account_kubeconfig(name)


@contextlib.asynccontextmanager
async def cluster(folder: Path, ports: Ports) -> AsyncIterator[Cluster]:
    """The cluster that `KUBEGEMS_TEST_KUBECONFIG` names, else one of our own."""
    given = os.environ.get("KUBEGEMS_TEST_KUBECONFIG")
    if given:
        yield await _given(Path(given), folder)
        return
    async with contextlib.AsyncExitStack() as stack:
        yield await _own(folder, ports, stack)


async def _given(kubeconfig: Path, folder: Path) -> Cluster:
    member = Member(kubeconfig, folder / "cluster")
    try:
        await member.kubectl("get", "configmap", "-n", *_MARKER)
    except LocalError as error:
        pytest.fail(f"KUBEGEMS_TEST_KUBECONFIG is refused: its cluster holds no ConfigMap {'/'.join(_MARKER)} ({error})")
    await member.install()
    return Cluster(kubeconfig, member)


async def _own(folder: Path, ports: Ports, stack: contextlib.AsyncExitStack) -> Cluster:
    binaries = await programs()
    plane = ControlPlane(folder / "cluster", folder / "log", ports, durable=False)
    plane.binary = binaries["controlplane"]
    await plane.prepare()
    stack.callback(shutil.rmtree, folder / "cluster/etcd", ignore_errors=True)
    etcd, apiserver, rest = plane.parts()
    kwok = Kwok(folder / "kwok", folder / "log/kwok.log", plane, ports.take("kwok"), hidden=(folder,))
    kwok.binary = binaries["kwok"]
    member = Member(plane.kubeconfig(), folder / "cluster")
    processes = {}
    for part in (etcd, apiserver, *rest, kwok.part()):
        processes[part.name] = await stack.enter_async_context(parts.running(part))
    await member.install()
    return Cluster(plane.kubeconfig(), member, processes, kwok.exec_works)


async def programs() -> dict[str, Path]:
    """The built control plane and node simulator; skips the test where Go cannot be had, fails when that is CI."""
    try:
        return {program.name: await build.binary(program, print) for program in (build.CONTROL_PLANE, build.NODES)}
    except LocalError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the control plane: {error}")
        pytest.skip(f"no control plane: {error}")
