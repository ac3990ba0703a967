"""The desired set: generations, tombstones, checksums, reports."""

from __future__ import annotations

import asyncio
from uuid import UUID

import orjson

from kubegems.agent.v1 import desired_state_service_pb2 as desired_pb
from kubegems.agent.v1 import preview_service_pb2
from kubegems.fleet.v1 import cluster_service_pb2
from libs.clock import new_id
from libs.rpc import Call
from services.gateway.fleet import desired
from services.gateway.fleet.desired import Ref
from services.gateway.tenancy.tests.house import House, refused

Status = desired_pb.ObjectStatus


def _ref(name: str, uid: UUID | None = None, kind: str = "Tenant") -> Ref:
    return Ref(kind, name, uid or new_id(), name)


async def _put(house: House, cluster: str, ref: Ref, **spec: object) -> bool:
    async with house.database.transaction() as tx:
        return await desired.put(tx, UUID(cluster), ref, {"spec": spec})


async def _remove(house: House, cluster: str, ref: Ref) -> bool:
    async with house.database.transaction() as tx:
        return await desired.remove(tx, UUID(cluster), ref)


async def test_generation_rises_only_when_the_set_changes(house: House) -> None:
    """The same manifest again, whatever the order of its keys, changes neither generation nor checksum."""
    _, uid = await house.cluster()
    ref = _ref("a")
    assert await _put(house, uid, ref, x=1, y=2)
    first = await house.fetch(uid)
    assert not await _put(house, uid, ref, y=2, x=1)
    again = await house.fetch(uid)
    assert (again.generation, again.checksum) == (first.generation, first.checksum)
    assert await _put(house, uid, ref, x=2)
    changed = await house.fetch(uid)
    assert changed.generation == first.generation + 1
    assert changed.checksum != first.checksum
    assert [o.generation for o in changed.objects] == [changed.generation]


async def test_a_current_agent_hears_only_that(house: House) -> None:
    """Known generation and checksum get `unchanged`; a wrong checksum or generation gets the whole set."""
    _, uid = await house.cluster()
    await _put(house, uid, _ref("a"))
    state = await house.fetch(uid)
    assert state.objects
    assert not state.unchanged
    current = await house.fetch(uid, state.generation, state.checksum)
    assert (current.unchanged, len(current.objects), current.generation) == (True, 0, state.generation)
    assert current.hub_uid == state.hub_uid != ""
    for generation, checksum in ((state.generation, "other"), (state.generation - 1, state.checksum), (0, "")):
        assert (await house.fetch(uid, generation, checksum)).objects


async def test_checksum_is_over_objects_without_traces(house: House) -> None:
    """Anyone can compute it from the answer; the trace context does not count."""
    _, uid = await house.cluster()
    for name in ("b", "a"):
        await _put(house, uid, _ref(name, kind="Environment"), name=name)
    await _put(house, uid, _ref("z"))
    await house.sql("UPDATE fleet.desired_objects SET traceparent = '00-1-2-01' WHERE cluster_uid = $1 RETURNING 1", UUID(uid))
    state = await house.fetch(uid)
    rows = [{"kind": o.kind, "name": o.name, "uid": o.uid, "generation": o.generation, "manifest": o.manifest} for o in state.objects]
    assert desired.checksum(rows) == state.checksum
    assert [(o.kind, o.name) for o in state.objects] == [("Tenant", "z"), ("Environment", "a"), ("Environment", "b")]
    assert orjson.loads(state.objects[1].manifest) == {"spec": {"name": "a"}}


async def test_removal_leaves_a_tombstone_until_confirmed(house: House) -> None:
    """Neither an empty report nor one of an earlier generation lets it go; REMOVED or a full report does."""
    _, uid = await house.cluster()
    ref, other = _ref("a"), _ref("b")
    for one in (ref, other):
        await _put(house, uid, one)
    before = (await house.fetch(uid)).generation
    assert await _remove(house, uid, ref)
    assert not await _remove(house, uid, ref)
    await _remove(house, uid, other)
    state = await house.fetch(uid)
    assert [(t.name, t.uid, t.generation) for t in state.tombstones] == [
        ("a", str(ref.uid), before + 1), ("b", str(other.uid), before + 2),
    ]  # fmt: skip
    await house.report(uid, generation=state.generation)
    await house.report(uid, full=True, generation=before)
    foreign = Status(kind="Tenant", name="a", uid=str(new_id()), generation=state.generation, state=Status.REMOVED)
    await house.report(uid, foreign, generation=state.generation)
    assert len((await house.fetch(uid)).tombstones) == 2
    await house.report(
        uid, Status(kind="Tenant", name="a", uid=str(ref.uid), generation=before + 1, state=Status.REMOVED), generation=before
    )
    assert [t.name for t in (await house.fetch(uid)).tombstones] == ["b"]
    held = Status(kind="Tenant", name="b", uid=str(other.uid), generation=state.generation, state=Status.REMOVING)
    await house.report(uid, held, full=True, generation=state.generation)
    assert [t.name for t in (await house.fetch(uid)).tombstones] == ["b"]
    await house.report(uid, full=True, generation=state.generation)
    assert not (await house.fetch(uid)).tombstones
    assert (await house.fetch(uid)).generation == state.generation


async def test_a_part_is_whole_in_its_range_only(house: House) -> None:
    """Absence confirms a removal, and forgets a status, after the part's beginning and up to its end; elsewhere all stays."""
    _, uid = await house.cluster()
    refs = {name: _ref(name) for name in "abcd"}
    for ref in refs.values():
        await _put(house, uid, ref)
    await house.report(uid, *await house.statuses(uid, "READY"), full=True)
    for ref in refs.values():
        await _remove(house, uid, ref)
    generation = (await house.fetch(uid)).generation

    async def left() -> tuple[list[str], list[str]]:
        rows = await house.sql("SELECT name FROM fleet.statuses WHERE cluster_uid = $1 ORDER BY name", UUID(uid))
        return [t.name for t in (await house.fetch(uid)).tombstones], [row["name"] for row in rows]

    part = desired_pb.ReportStatusRequest.Part
    await house.report(uid, part=part(after="Tenant/a", until="Tenant/b"), generation=1)
    assert await left() == (["a", "b", "c", "d"], ["a", "c", "d"])
    await house.report(uid, part=part(after="Tenant/a", until="Tenant/b"), generation=generation)
    assert await left() == (["a", "c", "d"], ["a", "c", "d"])
    await house.report(uid, part=part(until="Tenant/a"), generation=generation)
    assert await left() == (["c", "d"], ["c", "d"])
    held = Status(kind="Tenant", name="d", uid=str(refs["d"].uid), generation=generation, state=Status.REMOVING)
    await house.report(uid, held, part=part(after="Tenant/b"), generation=generation)
    assert await left() == (["d"], ["d"])
    await house.report(uid, part=part(after="Tenant/b"), generation=generation)
    assert await left() == ([], [])


async def test_putting_back_takes_the_tombstone_away(house: House) -> None:
    """The same uid is wanted again; another uid under the name keeps the old one's tombstone."""
    _, uid = await house.cluster()
    ref, successor = _ref("a"), _ref("a")
    await _put(house, uid, ref)
    await _remove(house, uid, ref)
    await _put(house, uid, ref)
    state = await house.fetch(uid)
    assert (len(state.objects), len(state.tombstones)) == (1, 0)
    await _put(house, uid, successor)
    state = await house.fetch(uid)
    assert [o.uid for o in state.objects] == [str(successor.uid)]
    assert [t.uid for t in state.tombstones] == [str(ref.uid)]


async def test_concurrent_writers_never_share_a_generation(house: House) -> None:
    """Twenty changes at once are twenty generations, and the set holds all of them."""
    _, uid = await house.cluster()
    await asyncio.gather(*(_put(house, uid, _ref(f"t{i:02}"), i=i) for i in range(20)))
    state = await house.fetch(uid)
    assert sorted(o.generation for o in state.objects) == list(range(1, 21))


async def test_an_older_report_does_not_overwrite_a_newer_one(house: House) -> None:
    """Statuses speak of a generation; what is late is ignored, unless it is the whole picture."""
    _, uid = await house.cluster()
    ref = _ref("a")
    await _put(house, uid, ref)
    new = Status(kind="Tenant", name="a", uid=str(ref.uid), generation=5, state=Status.READY)
    old = Status(kind="Tenant", name="a", uid=str(ref.uid), generation=4, state=Status.FAILED)
    await house.report(uid, new)
    await house.report(uid, old)
    (row,) = await house.sql("SELECT state FROM fleet.statuses WHERE cluster_uid = $1", UUID(uid))
    assert row["state"] == "READY"
    await house.report(uid, old, full=True)
    (row,) = await house.sql("SELECT state FROM fleet.statuses WHERE cluster_uid = $1", UUID(uid))
    assert row["state"] == "FAILED"
    await house.report(uid, full=True)
    assert not await house.sql("SELECT 1 FROM fleet.statuses WHERE cluster_uid = $1", UUID(uid))


async def test_an_agent_of_a_removed_cluster_gets_nothing(house: House) -> None:
    """NOT_FOUND for fetch and report."""
    stranger = str(new_id())
    with refused("NOT_FOUND"):
        await house.fetch(stranger)
    with refused("NOT_FOUND"):
        await house.report(stranger)


async def test_users_cannot_reach_it(house: House) -> None:
    """It needs an agent's certificate; even the platform admin has none."""
    with refused("UNAUTHENTICATED"):
        await house.call("DesiredStateService/FetchDesiredState", desired_pb.FetchDesiredStateRequest())


async def test_a_paused_cluster_is_told_so_or_told_nothing_new(house: House) -> None:
    """An agent of protocol 2 gets the set with the word; an earlier one nothing; both are woken by pause and resume."""
    cluster, uid = await house.cluster()
    await house.tenant(cluster)
    heard: list[str] = []
    await house.database.listen("desired", heard.append)
    request = cluster_service_pb2.PauseClusterRequest(name=f"clusters/{cluster}")
    for _ in range(2):
        assert (await house.call("ClusterService/PauseCluster", request)).paused
    state = await house.fetch(uid)
    assert (state.paused, len(state.objects)) == (True, 3)
    call = Call(house.methods["DesiredStateService/FetchDesiredState"], peer=f"spiffe://kubegems/cluster/{uid}")
    call.metadata["kubegems-protocol"] = "1"
    with refused("PAUSED"):
        await house.pipeline.unary(call, desired_pb.FetchDesiredStateRequest())
    resume = cluster_service_pb2.ResumeClusterRequest(name=f"clusters/{cluster}")
    assert not (await house.call("ClusterService/ResumeCluster", resume)).paused
    assert not (await house.fetch(uid)).paused
    await house.pipeline.unary(Call(call.method, peer=call.peer, metadata=dict(call.metadata)), desired_pb.FetchDesiredStateRequest())
    async with asyncio.timeout(5):
        while sum(uid in payload for payload in heard) < 2:
            await asyncio.sleep(0.01)


async def test_the_diff_is_the_agents_answer(house: House) -> None:
    """Asked as the service that applies; offline it is UNAVAILABLE with a time to come back."""
    cluster, uid = await house.cluster()
    request = cluster_service_pb2.DiffClusterRequest(name=f"clusters/{cluster}")
    with refused("UNAVAILABLE"):
        await house.call("ClusterService/DiffCluster", request)
    house.links.reachable.add(uid)
    reply = preview_service_pb2.PreviewDesiredStateResponse()
    reply.diff.objects.add(kind="Tenant", name="acme")
    house.links.replies["PreviewDesiredState"] = reply
    assert (await house.call("ClusterService/DiffCluster", request, "auditor")).objects[0].name == "acme"
    assert house.links.principals[-1].user == "gems:service:desired-state"
    with refused("NOT_FOUND"):
        await house.call("ClusterService/DiffCluster", cluster_service_pb2.DiffClusterRequest(name="clusters/none"))


async def test_an_environments_groups_are_granted_by_the_clusters_word_and_stay_so(house: House) -> None:
    """Not by applying it; by RightsReady True once; later trouble takes nothing back, its removal does."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster)

    async def granted() -> int:
        return len(await house.sql("SELECT 1 FROM fleet.granted WHERE environment_uid = $1 AND cluster_uid = $2", env.uid, uid))

    await house.report(uid, *await house.statuses(uid, "APPLIED"), full=True)
    assert await granted() == 0
    for status, expected in (("Unknown", 0), ("True", 1), ("False", 1)):
        condition = Status.Condition(type="RightsReady", status=status)
        await house.report(uid, *await house.statuses(uid, "DEGRADED", conditions=[condition]))
        assert await granted() == expected
    await house.delete_environment(env.name)
    await house.obey(uid)
    assert await granted() == 0
