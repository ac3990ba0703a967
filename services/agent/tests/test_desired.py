"""Desired state against a real API server, with the hub as a double."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from libs import faults
from libs.kube import KindMissing, KubeClient
from libs.kube.resources import CONFIG_MAPS, TENANTS
from services.agent.desired import domain
from services.agent.desired.applier import PRINCIPAL, Applier
from services.agent.desired.follower import Follower
from services.agent.desired.kept import Kept

pytestmark = pytest.mark.cluster


class Hub:
    """A hub with one cluster's desired set, reached by a tunnel that can be cut."""

    def __init__(self) -> None:
        self.uid = f"hub-{secrets.token_hex(4)}"
        self.prefix = f"t{secrets.token_hex(3)}"
        self.reply = wire.FetchDesiredStateResponse(hub_uid=self.uid, generation=0)
        self.online = True
        self.paused = False
        self.asked: list[wire.FetchDesiredStateRequest] = []

    @property
    def hub_uid(self) -> str:
        """Which hub is at the other end."""
        return self.reply.hub_uid

    async def call(self, method: Any, request: Any, *, timeout: float) -> Any:
        """The tunnel."""
        assert timeout > 0
        if not self.online:
            raise faults.Unavailable("no tunnel")
        self.asked.append(request)
        if request.known_generation == self.reply.generation and request.known_checksum == self.reply.checksum:
            return wire.FetchDesiredStateResponse(hub_uid=self.uid, generation=self.reply.generation, unchanged=True, paused=self.paused)
        return self.reply

    def name(self, number: int) -> str:
        """Name of the numbered tenant."""
        return f"{self.prefix}-{number}"

    def want(self, *numbers: int, **changes: Any) -> None:
        """A new generation in which these tenants should be."""
        self.reply.generation += 1
        self.reply.checksum = f"sum-{self.reply.generation}"
        del self.reply.objects[:]
        for number in numbers:
            manifest = {"labels": {}, "annotations": {}, "spec": {"tenantName": self.name(number)}}
            values = {"uid": f"row-{number}", "generation": self.reply.generation, **changes}
            self.reply.objects.add(kind="Tenant", name=self.name(number), manifest=orjson.dumps(manifest), **values)

    def bury(self, *numbers: int, uid: str = "") -> None:
        """Tombstones in this generation."""
        for number in numbers:
            self.reply.tombstones.add(kind="Tenant", name=self.name(number), uid=uid or f"row-{number}", generation=self.reply.generation)


@pytest.fixture
async def hub(kube: KubeClient) -> AsyncIterator[Hub]:
    """A hub whose objects are gone after the test."""
    found = Hub()
    yield found
    async for tenant in kube.list(TENANTS):
        if tenant["metadata"]["name"].startswith(found.prefix):
            with suppress(faults.NotFound):
                await kube.patch(TENANTS, tenant["metadata"]["name"], {"metadata": {"finalizers": None}})
                await kube.delete(TENANTS, tenant["metadata"]["name"])


def follower(hub: Hub, kube: KubeClient, folder: Path, cluster_uid: str = "uid-1", **options: Any) -> Follower:
    return Follower(hub, Applier(kube), Kept(folder, cluster_uid), resync_seconds=60, **options)


async def names(kube: KubeClient, hub: Hub) -> set[int]:
    """The hub's tenants in the cluster."""
    found = [t["metadata"]["name"] async for t in kube.list(TENANTS)]
    return {int(name.rpartition("-")[2]) for name in found if name.startswith(hub.prefix)}


async def test_a_set_is_applied_and_kept(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Objects carry row uid, hub uid, generation and trace; the next fetch says what is known, also after a restart."""
    hub.want(1, 2, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    found = follower(hub, kube, tmp_path)
    assert await found.sync()
    tenant = await kube.get(TENANTS, hub.name(1))
    annotations = tenant["metadata"]["annotations"]
    assert annotations[domain.UID] == "row-1"
    assert annotations[domain.HUB_UID] == hub.uid
    assert annotations[domain.GENERATION] == "1"
    assert annotations[domain.TRACEPARENT].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert {entry["manager"] for entry in tenant["metadata"]["managedFields"]} == {"kubegems-hub"}
    again = follower(hub, kube, tmp_path)
    assert again.applied_generation == 1
    assert await again.sync()
    assert (hub.asked[-1].known_generation, hub.asked[-1].known_checksum) == (1, "sum-1")
    assert again.outcome.written == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())


async def test_absence_removes_nothing(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """An object that the set does not name stays."""
    hub.want(1, 2)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.want(1)
    assert await found.sync()
    assert await names(kube, hub) == {1, 2}


async def test_a_tombstone_removes_only_its_own(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Uid equal: marked, then deleted. Uid different: not touched, and the earlier one told as gone."""
    hub.want(1, 2)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    await kube.patch(TENANTS, hub.name(1), {"metadata": {"finalizers": ["kubegems.test/hold"]}})
    hub.want()
    hub.bury(1)
    hub.bury(2, uid="row-of-another-time")
    assert await found.sync()
    assert await names(kube, hub) == {1, 2}
    held = await kube.get(TENANTS, hub.name(1))
    assert held["metadata"]["annotations"][domain.TOMBSTONE] == "2"
    assert held["metadata"]["deletionTimestamp"]
    assert "deletionTimestamp" not in (await kube.get(TENANTS, hub.name(2)))["metadata"]
    assert set(found.outcome.removing) == {("Tenant", hub.name(1))}
    assert [b.name for b in found.outcome.removed] == [hub.name(2)]


async def test_many_removals_stop_and_wait(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Four of five wait, while what should be is applied; the confirmed generation lets them go on."""
    hub.want(1, 2, 3, 4, 5)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.want(5, 6)
    hub.bury(1, 2, 3, 4)
    await found.sync()
    assert await names(kube, hub) == {1, 2, 3, 4, 5, 6}
    assert "confirm generation 2" in found.confirmation_needed
    assert found.applied_generation == 1
    hub.reply.confirmed_generation = 2
    assert await found.sync()
    assert await names(kube, hub) == {5, 6}
    assert (found.confirmation_needed, found.applied_generation) == ("", 2)


async def test_another_hub_is_refused(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Its set changes nothing, and the reason is told."""
    hub.want(1)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.want(2)
    hub.reply.hub_uid = "hub-other"
    await found.sync()
    assert await names(kube, hub) == {1}
    assert "hub-other" in found.confirmation_needed


async def test_a_lower_generation_is_refused_until_confirmed(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """A hub restored from an old backup does not take the cluster back by itself, across restarts too."""
    hub.reply.generation = 10
    hub.want(1)
    await follower(hub, kube, tmp_path).sync()
    hub.reply.generation = 4
    hub.want(2)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    await found.sync()
    assert await names(kube, hub) == {1}
    assert "confirm generation 5" in found.confirmation_needed
    hub.reply.confirmed_generation = 5
    assert await follower(hub, kube, tmp_path).sync()
    assert await names(kube, hub) == {1, 2}


async def test_drift_is_put_right_even_without_the_hub(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """What others changed or deleted comes back at the next resync, from what is kept."""
    hub.want(1, 2)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    await kube.patch(TENANTS, hub.name(1), {"metadata": {"annotations": {domain.GENERATION: "99"}}})
    await kube.delete(TENANTS, hub.name(2))
    hub.online = False
    await found.sync()
    assert (await kube.get(TENANTS, hub.name(1)))["metadata"]["annotations"][domain.GENERATION] == "1"
    assert await names(kube, hub) == {1, 2}


async def test_one_failure_does_not_stop_the_others(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """A foreign object and an unknown kind fail with their reasons; the rest is applied; the generation is not."""
    await kube.create(TENANTS, {"metadata": {"name": hub.name(1)}, "spec": {"tenantName": hub.name(1)}})
    hub.want(1, 2)
    hub.reply.objects.add(kind="Mystery", name="m", uid="row-m", generation=1, manifest=b"{}")
    found = follower(hub, kube, tmp_path)
    assert not await found.sync()
    assert found.outcome.failures["Tenant", hub.name(1)].reason == "NOT_OURS"
    assert found.outcome.failures["Mystery", "m"].reason == "KIND_MISSING"
    assert await names(kube, hub) == {1, 2}
    assert found.applied_generation == 0


async def test_missing_crds_are_waited_for(kube: KubeClient, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the CRD the failure says what the cluster's admin must do; tombstones are not taken as done."""
    hub.want(1)
    hub.bury(2)

    async def missing(*_: Any, **__: Any) -> AsyncIterator[Any]:
        raise KindMissing("404 page not found")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(kube, "list", missing)
        found = follower(hub, kube, tmp_path)
        assert not await found.sync()
    failure = found.outcome.failures["Tenant", hub.name(1)]
    assert (failure.reason, "join manifest" in failure.message) == ("KIND_MISSING", True)
    assert found.outcome.removed == []
    assert await found.sync()


async def test_it_acts_with_the_rights_of_its_own_principal(kube: KubeClient) -> None:
    """Applying runs as `gems:service:desired-state`, which may write our kinds and nothing else."""
    with pytest.raises(faults.PermissionDenied, match="gems:service:desired-state"):
        await kube.get(CONFIG_MAPS, "x", "default", impersonate=PRINCIPAL)


async def test_a_hint_is_followed_at_once(kube: KubeClient, hub: Hub, tmp_path: Path, eventually: Any) -> None:
    """`poke` brings the next set long before the resync."""
    hub.want(1)
    found = follower(hub, kube, tmp_path)
    task = asyncio.create_task(found.run(), name="follower")
    await eventually(lambda: found.applied_generation == 1, within=5)
    hub.want(1, 2)
    found.poke()
    await eventually(lambda: found.applied_generation == 2, within=5)
    task.cancel()
    await asyncio.wait([task])
