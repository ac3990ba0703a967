"""Election on a real API server: one leader, hand-over on stop, take-over on silence."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from libs.clock import SystemClock
from libs.kube import KubeClient
from libs.kube.resources import LEASES
from libs.reconcile import Election

pytestmark = pytest.mark.cluster
NAMESPACE = "default"


@pytest.fixture(scope="session")
async def kube(cluster: Any) -> AsyncIterator[KubeClient]:
    async with await KubeClient.from_kubeconfig(cluster.kubeconfig) as client:
        yield client


@pytest.fixture
async def contest(kube: KubeClient) -> AsyncIterator[Callable[[str], tuple[asyncio.Task[None], asyncio.Event]]]:
    """Starts candidates for one lease: the task and the event that says it leads."""
    lease = f"test-{secrets.token_hex(4)}"
    tasks: list[asyncio.Task[None]] = []
    leading: set[str] = set()

    def start(identity: str) -> tuple[asyncio.Task[None], asyncio.Event]:
        leads = asyncio.Event()

        async def work() -> None:
            assert not leading, f"{identity} leads while {leading} does"
            leading.add(identity)
            leads.set()
            try:
                await asyncio.Event().wait()
            finally:
                leading.discard(identity)
                leads.clear()

        election = Election(kube, namespace=NAMESPACE, name=lease, identity=identity, clock=SystemClock(), duration=3, retry=0.2)
        tasks.append(task := asyncio.create_task(election.run(work), name=identity))
        return task, leads

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await kube.delete(LEASES, lease, NAMESPACE)


async def test_one_leads_and_the_next_takes_over_when_it_stops(contest: Any, eventually: Any) -> None:
    """A leader that stops gives the lease back, so that the next leads at once."""
    first, first_leads = contest("one")
    await eventually(first_leads.is_set, within=5)
    _, second_leads = contest("two")
    await asyncio.sleep(1)  # several tries of the second
    assert first_leads.is_set()
    assert not second_leads.is_set()
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    await eventually(second_leads.is_set, within=1.5, what="hand-over")


async def test_a_silent_leader_is_replaced_only_after_its_lease_ran_out(contest: Any, kube: KubeClient, eventually: Any) -> None:
    """A lease that nobody renews keeps the others waiting for its duration, not longer."""
    _, leads = contest("two")
    await eventually(leads.is_set, within=5)
    lease = await anext(found async for found in kube.list(LEASES, NAMESPACE) if found["spec"]["holderIdentity"] == "two")
    stolen = {**lease["spec"], "holderIdentity": "dead", "leaseDurationSeconds": 2}
    await kube.patch(LEASES, lease["metadata"]["name"], {"spec": stolen}, NAMESPACE)
    began = asyncio.get_running_loop().time()
    await eventually(lambda: not leads.is_set(), within=1.5, what="the loser stops")
    await eventually(leads.is_set, within=5, what="take-over")
    assert asyncio.get_running_loop().time() - began >= 1.9
