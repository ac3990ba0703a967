"""Interest: what replicas report and what agents are told, over real rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kubegems.agent.v1 import desired_state_service_pb2 as desired_pb
from kubegems.fleet.v1 import cluster_access_service_pb2 as access_pb2
from libs.clock import new_id
from libs.faults import Invalid
from libs.rpc import Call, Caller, Kind
from services.gateway.fleet import interest
from services.gateway.fleet.desired_api import DesiredStateService
from services.gateway.fleet.interest import MOST, Interests
from services.gateway.tenancy.tests.house import House


async def _report(house: House, replica: str, **wanted: Sequence[str]) -> None:
    """A replica's whole report: kinds by cluster uid."""
    request = access_pb2.ReportInterestRequest(replica=replica)
    for uid, resources in wanted.items():
        request.clusters.add(cluster_uid=uid, resources=resources)
    await house.call("ClusterAccessService/ReportInterest", request, service="msgbus")


async def _wanted(house: House, uid: str) -> list[str]:
    return await Interests(house.database).wanted(uid)


def _replicas() -> tuple[str, str]:
    return new_id().hex, new_id().hex


async def test_a_report_takes_the_place_of_the_replicas_last_and_of_no_other(house: House) -> None:
    """Kinds of both replicas count, once each; what one no longer names goes, what the other names stays; per cluster."""
    (_, uid), (_, other) = await house.cluster(), await house.cluster()
    one, two = _replicas()
    await _report(house, one, **{uid: ["configmaps..", "widgets..example.com"], other: ["roles..rbac.authorization.k8s.io"]})
    await _report(house, two, **{uid: ["configmaps..", "limitranges.."]})
    assert sorted(await _wanted(house, uid)) == ["configmaps..", "limitranges..", "widgets..example.com"]
    assert await _wanted(house, other) == ["roles..rbac.authorization.k8s.io"]
    await _report(house, one, **{uid: ["configmaps.."]})
    assert sorted(await _wanted(house, uid)) == ["configmaps..", "limitranges.."]
    assert await _wanted(house, other) == [], "a whole report that does not name the cluster"
    await _report(house, one)
    assert sorted(await _wanted(house, uid)) == ["configmaps..", "limitranges.."]
    await _report(house, two)
    assert await _wanted(house, uid) == []
    assert await house.sql("SELECT 1 FROM fleet.interest WHERE replica = ANY($1)", [one, two]) == []


async def test_a_replica_that_is_silent_is_forgotten(house: House) -> None:
    """Killed without a word, its interest ends with its last report's time; the next report of anyone removes the rows."""
    _, uid = await house.cluster()
    dead, living = _replicas()
    await _report(house, dead, **{uid: ["configmaps.."]})
    (row,) = await house.sql("SELECT extract(epoch FROM expires - now())::float AS left FROM fleet.interest WHERE replica = $1", dead)
    assert interest.KEPT_SECONDS - 5 < row["left"] <= interest.KEPT_SECONDS
    await house.sql("UPDATE fleet.interest SET expires = now() - interval '1 second' WHERE replica = $1", dead)
    assert await _wanted(house, uid) == []
    await _report(house, living)
    assert await house.sql("SELECT 1 FROM fleet.interest WHERE replica = $1", dead) == []


async def test_no_replica_crowds_out_another(house: House) -> None:
    """Of more kinds than an agent is asked for, each replica's first ones are kept."""
    _, uid = await house.cluster()
    greedy, modest = _replicas()
    await _report(house, greedy, **{uid: [f"a{i:03}..example.com" for i in range(3 * MOST)]})
    await _report(house, modest, **{uid: ["zebras..example.com", "zorillas..example.com"]})
    wanted = await _wanted(house, uid)
    assert len(wanted) == MOST
    assert {"a000..example.com", "zebras..example.com", "zorillas..example.com"} <= set(wanted)
    await _report(house, greedy)
    await _report(house, modest)


async def test_an_agent_is_told_its_own_clusters_interest(house: House) -> None:
    """FetchInterest as the gateway is wired: sorted, and nothing of another cluster; a uid that is none is refused."""
    (_, uid), (_, other) = await house.cluster(), await house.cluster()
    one, _ = _replicas()
    await _report(house, one, **{uid: ["widgets..example.com", "configmaps.."], other: ["roles..rbac.authorization.k8s.io"]})
    service = DesiredStateService(clock=house.clock, interest=Interests(house.database).wanted)
    asking = Call(house.methods["DesiredStateService/FetchInterest"], caller=Caller(Kind.AGENT, uid))
    reply = await service.FetchInterest(desired_pb.FetchInterestRequest(), asking)
    assert list(reply.resources) == ["configmaps..", "widgets..example.com"]
    with pytest.raises(Invalid):
        await _report(house, one, **{"no-uid": ["configmaps.."]})
