"""Pausing, the preview, conflicts, and a hub that is away, restored or another: against a real API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubegems.agent.v1 import preview_service_pb2 as wire
from kubegems.fleet.v1 import desired_diff_pb2
from libs import faults
from libs.kube import KubeClient, Principal
from libs.kube.resources import TENANTS
from services.agent.desired import domain
from services.agent.desired.applier import PRINCIPAL, Applier
from services.agent.desired.follower import Follower
from services.agent.desired.kept import Kept
from services.agent.desired.preview import Preview
from services.agent.tests.test_desired import Hub, follower, hub, names

__all__ = ["hub"]
pytestmark = pytest.mark.cluster
Diff = desired_diff_pb2.ObjectDiff


async def previewed(hub: Hub, kube: KubeClient, found: Follower, *, user: Principal = PRINCIPAL) -> desired_diff_pb2.DesiredDiff:
    preview = Preview(principal_of=lambda _: user)
    preview.of(hub, Applier(kube), found)
    call: Any = None
    return (await preview.PreviewDesiredState(wire.PreviewDesiredStateRequest(), call)).diff


def told(hub: Hub, diff: desired_diff_pb2.DesiredDiff) -> dict[int, tuple[str, str]]:
    """Action and reason of the numbered tenants."""
    return {int(o.name.rpartition("-")[2]): (Diff.Action.Name(o.action), o.reason) for o in diff.objects if o.name.startswith(hub.prefix)}


async def test_a_pause_stops_everything_and_outlives_a_restart(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Nothing is made, put right or removed, not even while the hub is away; then it all happens."""
    hub.want(1, 2)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.want(2, 3)
    hub.bury(1)
    hub.reply.paused = True
    await kube.delete(TENANTS, hub.name(2))
    assert await found.sync()
    assert (await names(kube, hub), found.paused, found.applied_generation) == ({1}, True, 1)
    hub.online = False
    again = follower(hub, kube, tmp_path)
    await again.sync()
    assert (await names(kube, hub), again.paused) == ({1}, True)
    hub.online, hub.reply.paused = True, False
    assert await again.sync()
    assert (await names(kube, hub), again.paused, again.applied_generation) == ({2, 3}, False, 2)


async def test_a_pause_of_an_unchanged_set_is_heard(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Also when there is nothing new to fetch, drift is left alone; and put right after it."""
    hub.want(1)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.paused = True
    await found.sync()
    await kube.delete(TENANTS, hub.name(1))
    await found.sync()
    assert await names(kube, hub) == set()
    hub.paused = False
    await found.sync()
    assert await names(kube, hub) == {1}


async def test_the_preview_says_what_would_change_and_changes_nothing(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Made, changed with fields and whose they were, removed, foreign, as it should be; then applying does just that."""
    hub.want(1, 2, 3)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    await kube.patch(TENANTS, hub.name(2), {"metadata": {"labels": {"team": "them"}}}, field_manager="kubectl-edit")
    await kube.create(TENANTS, {"metadata": {"name": hub.name(5)}, "spec": {"tenantName": hub.name(5)}})
    hub.want(3, 4, 5)
    manifest = b'{"labels":{"team":"us"},"annotations":{},"spec":{"tenantName":"%s"}}' % hub.name(2).encode()
    hub.reply.objects.add(kind="Tenant", name=hub.name(2), uid="row-2", generation=2, manifest=manifest)
    hub.bury(1)
    before = {t["metadata"]["name"]: t["metadata"]["resourceVersion"] async for t in kube.list(TENANTS)}
    diff = await previewed(hub, kube, found)
    assert told(hub, diff) == {1: ("REMOVE", ""), 2: ("UPDATE", ""), 3: ("UPDATE", ""), 4: ("CREATE", ""), 5: ("BLOCKED", "NOT_OURS")}
    assert (diff.generation, diff.applied_generation, diff.paused, diff.confirmation_needed) == (2, 1, False, "")
    changed = next(o for o in diff.objects if o.name == hub.name(2))
    assert [(f.path, f.live, f.desired) for f in changed.fields] == [("metadata.labels.team", '"them"', '"us"')]
    assert [(c.manager, list(c.paths)) for c in changed.conflicts] == [("kubectl-edit", ["metadata.labels.team"])]
    assert {t["metadata"]["name"]: t["metadata"]["resourceVersion"] async for t in kube.list(TENANTS)} == before
    await found.sync()
    assert await names(kube, hub) == {2, 3, 4, 5}
    assert {key[1]: o.conflicts[0].manager for key, o in found.overwritten.items()} == {hub.name(2): "kubectl-edit"}
    after = await previewed(hub, kube, found)
    assert (told(hub, after), after.unchanged) == ({5: ("BLOCKED", "NOT_OURS")}, 3)


async def test_the_preview_knows_the_brake_and_the_other_hub(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Removals that wait are blocked; a set that would be refused is compared with nothing; others may not ask."""
    hub.want(1, 2, 3, 4, 5)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.want(5)
    hub.bury(1, 2, 3, 4)
    diff = await previewed(hub, kube, found)
    assert set(told(hub, diff).values()) == {("BLOCKED", "CONFIRMATION_NEEDED"), ("UPDATE", "")}
    assert "confirm generation 2" in diff.confirmation_needed
    hub.reply.hub_uid = "hub-other"
    refused = await previewed(hub, kube, found)
    assert ("hub-other" in refused.confirmation_needed, len(refused.objects)) == (True, 0)
    with pytest.raises(faults.PermissionDenied):
        await previewed(hub, kube, found, user=Principal("gems:user:dev"))


async def test_an_hour_without_the_hub_costs_nothing(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """At every resync of that hour what is kept is put right and nothing goes; then the newest set is reached at once."""
    hub.want(1, 2, 3)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.online = False
    hub.want(2, 3, 4)
    hub.bury(1)
    for resync in range(20):  # every 180 s
        if resync % 5 == 0:
            await kube.delete(TENANTS, hub.name(1 + resync % 3))
            found = follower(hub, kube, tmp_path)  # the agent was restarted, too
        assert not await found.sync()
        assert await names(kube, hub) == {1, 2, 3}
    hub.online = True
    assert await found.sync()
    assert (await names(kube, hub), found.applied_generation) == ({2, 3, 4}, 2)


async def test_another_hub_takes_over_only_when_let_and_removes_nothing_of_the_first(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Refused and told; let in, it makes what is free, says whose the rest is, and its tombstones touch nothing."""
    hub.want(1, 2)
    await follower(hub, kube, tmp_path).sync()
    first, hub.reply.hub_uid = hub.uid, f"{hub.uid}-2"
    hub.uid = hub.reply.hub_uid
    hub.reply.generation = 0
    hub.want(2, 3)
    hub.bury(1)
    asking = follower(hub, kube, tmp_path)
    await asking.sync()
    assert (await names(kube, hub), first in asking.confirmation_needed) == ({1, 2}, True)
    let = follower(hub, kube, tmp_path, accepted_hub_uid=hub.uid)
    assert not await let.sync()
    assert await names(kube, hub) == {1, 2, 3}
    assert let.outcome.failures["Tenant", hub.name(2)].reason == "OTHER_HUB"
    assert (await kube.get(TENANTS, hub.name(1)))["metadata"]["annotations"][domain.HUB_UID] == first


async def test_joining_another_hub_is_refused_too(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Its first set comes under a new cluster uid and is not taken unasked, across restarts; let in, it is followed for good."""
    hub.want(1)
    await follower(hub, kube, tmp_path).sync()
    first = hub.uid
    hub.uid = hub.reply.hub_uid = f"{first}-2"
    hub.want(2)
    for _ in range(2):
        asking = follower(hub, kube, tmp_path, "uid-2")
        assert (await previewed(hub, kube, asking)).confirmation_needed
        await asking.sync()
        assert (await names(kube, hub), asking.desired) == ({1}, None)
        assert first in asking.confirmation_needed
        assert hub.uid in asking.confirmation_needed
    assert await follower(hub, kube, tmp_path, "uid-2", accepted_hub_uid=hub.uid).sync()
    assert await follower(hub, kube, tmp_path, "uid-3").sync()
    assert await names(kube, hub) == {1, 2}
    hub.uid = hub.reply.hub_uid = first
    back = follower(hub, kube, tmp_path, "uid-4")
    await back.sync()
    assert f"{first}-2" in back.confirmation_needed


async def test_joining_the_same_hub_again_goes_on(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Under a new cluster uid generations begin anew; what was remembered under the old one goes."""
    hub.reply.generation = 7
    hub.want(1)
    await follower(hub, kube, tmp_path).sync()
    hub.reply.generation = 0
    hub.want(1, 2)
    again = follower(hub, kube, tmp_path, "uid-2")
    assert await again.sync()
    assert (await names(kube, hub), again.applied_generation, again.confirmation_needed) == ({1, 2}, 1, "")
    assert [found.name for found in tmp_path.iterdir()] == ["uid-2"]


async def test_another_hubs_numbers_are_not_kept(hub: Hub, tmp_path: Path) -> None:
    """What of the first hub's set was applied says nothing of the second's."""
    hub.want(1)
    kept = Kept(tmp_path, "uid-1")
    kept.take(hub.reply)
    kept.note(applied_generation=9, applied_checksum="sum-9")
    hub.reply.hub_uid = "hub-other"
    kept.take(hub.reply)
    progress = Kept(tmp_path, "uid-1").progress
    assert (progress.applied_generation, progress.applied_checksum) == (0, "")


async def test_a_broken_memory_of_an_earlier_join_is_told(tmp_path: Path) -> None:
    """Which hub was followed is not forgotten in silence."""
    (tmp_path / "uid-1").mkdir()
    (tmp_path / "uid-1/desired.bin").write_bytes(b"no set")
    with pytest.raises(ValueError, match="uid-1 holds a broken set"):
        Kept(tmp_path, "uid-2")


async def test_a_restored_hub_converges_when_it_catches_up(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Older generations are asked about and nothing goes; once its generation is past the known one it is followed again."""
    hub.reply.generation = 7
    hub.want(1, 2)
    found = follower(hub, kube, tmp_path)
    await found.sync()
    hub.reply.generation = 3
    hub.want(1)
    hub.bury(2)
    await found.sync()
    assert (await names(kube, hub), "older than 8" in found.confirmation_needed) == ({1, 2}, True)
    hub.reply.generation = 8
    del hub.reply.tombstones[:]
    hub.want(1, 3)
    assert await found.sync()
    assert (await names(kube, hub), found.confirmation_needed) == ({1, 2, 3}, "")


async def test_kept_progress_of_an_earlier_agent_is_read(tmp_path: Path) -> None:
    """A file without the newer fields."""
    (tmp_path / "uid-1").mkdir()
    (tmp_path / "uid-1/desired.json").write_text('{"applied_generation": 4, "applied_checksum": "x", "refused_confirmed": null}')
    kept = Kept(tmp_path, "uid-1")
    assert (kept.progress.applied_generation, kept.progress.paused) == (4, False)
