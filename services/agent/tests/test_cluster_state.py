"""State in the cluster: a new pod has the old one's identity and memory; of two pods only one works."""

from __future__ import annotations

import asyncio
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from libs.clock import SystemClock
from libs.faults import NotFound, PermissionDenied, Unavailable
from libs.kube import KubeClient
from libs.kube.resources import CONFIG_MAPS, LEASES, SECRETS
from libs.run import Life
from services.agent import cluster_state
from services.agent.cluster_state import NAME, ClusterState, lead
from services.agent.desired import domain
from services.agent.desired.kept import Kept, parse
from services.agent.enrolment import Enrolment
from services.agent.identity import IdentityFiles
from services.agent.tests.conftest import EnrollingHub

pytestmark = pytest.mark.cluster
NAMESPACE = "kubegems-system"


@pytest.fixture
async def account(cluster: Any, kube: KubeClient) -> AsyncIterator[KubeClient]:
    """The agent's own account, with what the join manifest gives it; nothing of a test before is left."""
    await _emptied(kube)
    async with await KubeClient.from_kubeconfig(await cluster.service_account_kubeconfig(NAME)) as client:
        yield client
    await _emptied(kube)


async def _emptied(kube: KubeClient) -> None:
    for resource in (SECRETS, CONFIG_MAPS, LEASES):
        try:
            await kube.delete(resource, NAME, NAMESPACE)
        except NotFound:
            continue


def _enrolment(hub: EnrollingHub, state: ClusterState, folder: Path) -> Enrolment:
    files = IdentityFiles(folder)
    return Enrolment(hub.address, hub.authority.fingerprint, files, version="test", saved=state.save_identity)


async def test_a_new_pod_has_the_old_ones_identity(
    account: KubeClient, enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path
) -> None:
    """Joined in one folder, restored into another, byte for byte and 0600; a renewal reaches the next pod too."""
    first = ClusterState(account, NAMESPACE, tmp_path / "first")
    await first.restore()
    joined = await _enrolment(enrolling_hub, first, tmp_path / "first").join(token_file)
    second = ClusterState(account, NAMESPACE, tmp_path / "second")
    await second.restore()
    restored = IdentityFiles(tmp_path / "second").load()
    assert restored is not None
    assert (restored.certificate, restored.key, restored.addresses) == (joined.certificate, joined.key, joined.addresses)
    for file in (tmp_path / "second").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    renewed = await _enrolment(enrolling_hub, second, tmp_path / "second").renew(restored)
    third = ClusterState(account, NAMESPACE, tmp_path / "third")
    await third.restore()
    found = IdentityFiles(tmp_path / "third").load()
    assert found is not None
    assert (found.certificate, found.certificate != joined.certificate) == (renewed.certificate, True)
    assert not (tmp_path / "third/next.key").exists()


async def test_the_key_is_kept_before_the_hub_hears_of_it(
    account: KubeClient, enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path
) -> None:
    """A pod that dies while joining leaves its key, and the next one takes the join up with it; without a copy nothing is asked."""
    enrolling_hub.problems = [StatusCode.UNAVAILABLE]
    state = ClusterState(account, NAMESPACE, tmp_path / "first")
    with pytest.raises(Unavailable):
        await _enrolment(enrolling_hub, state, tmp_path / "first").join(token_file)
    second = ClusterState(account, NAMESPACE, tmp_path / "second")
    await second.restore()
    assert (tmp_path / "second/next.key").read_text() == (tmp_path / "first/next.key").read_text()
    elsewhere = ClusterState(account, "default", tmp_path / "third")
    with pytest.raises(PermissionDenied):
        await _enrolment(enrolling_hub, elsewhere, tmp_path / "third").join(token_file)
    assert len(enrolling_hub.enrolled) == 1


def _set(generation: int, payload: bytes = b"") -> wire.FetchDesiredStateResponse:
    found = wire.FetchDesiredStateResponse(hub_uid="hub-1", generation=generation, checksum=f"sum-{generation}")
    found.objects.add(kind="Tenant", name="a", uid="u", generation=generation, manifest=b'{"x":"%s"}' % payload)
    return found


async def test_a_new_pod_remembers_the_hub(account: KubeClient, tmp_path: Path, eventually: Any) -> None:
    """Set and progress are copied after each change; a lower generation and another hub are still refused."""
    state = ClusterState(account, NAMESPACE, tmp_path / "first")
    task = asyncio.create_task(state.run())
    try:
        kept = Kept(tmp_path / "first/desired", "uid-1", on_change=state.poke)
        kept.take(_set(7))
        kept.note(applied_generation=7, applied_checksum="sum-7", paused=True)

        async def copied() -> bool:
            await ClusterState(account, NAMESPACE, tmp_path / "second").restore()
            found = Kept(tmp_path / "second/desired", "uid-1")
            return found.set == kept.set and found.progress == kept.progress

        await eventually(copied, within=10)
    finally:
        task.cancel()
    known = Kept(tmp_path / "second/desired", "uid-1").set
    older, other = parse(_set(6)), parse(wire.FetchDesiredStateResponse(hub_uid="hub-2", generation=9))
    for fetched in (older, other):
        assert domain.refusal(known, fetched, accepted_hub_uid="", refused_confirmed=None)
    assert not domain.refusal(known, parse(_set(8)), accepted_hub_uid="", refused_confirmed=None)
    assert Kept(tmp_path / "second/desired", "uid-2").earlier_hubs == {"hub-1"}  # joined anew


async def test_of_a_large_set_the_hub_and_generation_are_remembered(account: KubeClient, tmp_path: Path) -> None:
    """What fits into no ConfigMap is fetched again, and is refused as before when it is another hub's or an older one."""
    kept = Kept(tmp_path / "first/desired", "uid-1")
    kept.take(_set(7, secrets.token_hex(cluster_state.MOST * 2).encode()))
    kept.note(applied_generation=7, applied_checksum="sum-7")
    await ClusterState(account, NAMESPACE, tmp_path / "first").save_desired()
    await ClusterState(account, NAMESPACE, tmp_path / "second").restore()
    found = Kept(tmp_path / "second/desired", "uid-1")
    assert found.set is not None
    assert (found.set.hub_uid, found.set.generation, found.set.wanted, found.progress.applied_generation) == ("hub-1", 7, (), 0)


@asynccontextmanager
async def _pod(account: KubeClient) -> AsyncIterator[tuple[Life, asyncio.Task[None]]]:
    life = Life()
    waiting = asyncio.create_task(lead(account, NAMESPACE, SystemClock(), life.spawn))
    try:
        yield life, waiting
    finally:
        waiting.cancel()
        life.stopping.set()
        await life.stack.aclose()


async def test_of_two_pods_one_works(account: KubeClient, kube: KubeClient, eventually: Any) -> None:
    """The second stands by and takes over at once when the first one stops; one whose lease was taken away ends itself."""
    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(AsyncExitStack())
        _, first = await pod.enter_async_context(_pod(account))
        await asyncio.wait_for(first, 10)
        life, second = await stack.enter_async_context(_pod(account))
        await asyncio.wait({second}, timeout=1.5)  # several tries to take the lease
        assert not second.done()
        holder = (await kube.get(LEASES, NAME, NAMESPACE))["spec"]["holderIdentity"]
        await pod.aclose()
        await eventually(second.done, within=5, what="taken over")
        assert (await kube.get(LEASES, NAME, NAMESPACE))["spec"]["holderIdentity"] != holder
        await kube.patch(LEASES, NAME, {"spec": {"holderIdentity": "thief"}}, NAMESPACE)
        await eventually(lambda: life.failed, within=15, what="ended when the lease was lost")
        assert "LeaseLost" in str(life.failed)
