"""Health of clusters: states, reasons, events; what a removal leaves behind."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

from kubegems.fleet.v1 import cluster_pb2, cluster_service_pb2, events_pb2
from kubegems.tenancy.v1 import project_service_pb2, quota_service_pb2, tenant_service_pb2
from services.gateway.fleet import certificates_store, health, health_store
from services.gateway.fleet.health import Facts
from services.gateway.fleet.health_keeper import HealthKeeper
from services.gateway.fleet.health_store import Measure
from services.gateway.fleet.links import LinkKeeper
from services.gateway.fleet.version import VERSION
from services.gateway.tenancy.tests.house import House, refused

Cluster = cluster_pb2.Cluster


async def _get(house: House, cluster: str) -> Any:
    return await house.call("ClusterService/GetCluster", cluster_service_pb2.GetClusterRequest(name=f"clusters/{cluster}"))


async def _delete(house: House, cluster: str, *, force: bool = False) -> None:
    request = cluster_service_pb2.DeleteClusterRequest(name=f"clusters/{cluster}", force=force)
    await house.call("ClusterService/DeleteCluster", request)


async def _told(house: House, uid: str) -> list[events_pb2.ClusterHealthChanged]:
    rows = await house.sql("SELECT payload FROM fleet.outbox WHERE subject = 'gems.platform.fleet.cluster-changed' ORDER BY seq")
    return [e for e in (events_pb2.ClusterHealthChanged.FromString(r["payload"]) for r in rows) if e.uid == uid]


async def _certificate(house: House, uid: str, serial: str, *, left: timedelta, life: timedelta = timedelta(days=1)) -> None:
    ends = house.clock.now() + left
    await house.sql(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) VALUES ($1, $2, $3, $4)", serial, uid, ends - life, ends
    )


async def _judged(house: House) -> None:
    async with house.database.transaction() as tx:
        await health_store.judge(tx, house.clock.now())


def test_each_problem_has_its_reason() -> None:
    """One fact at a time makes one reason; a healthy cluster has none, nor has one whose certificate will be renewed soon."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    day = timedelta(days=1)
    fine = Facts(
        nodes=3, ready_nodes=3, issued=now - day / 2, expires=now + day / 2, round_trip=0.04, clock_skew=60, agent="1.2.0", hub="1.3.1"
    )
    assert not list(health.problems(fine, now))
    for found, reason in (
        (Facts(confirmation_needed="5 removals"), "CONFIRMATION_NEEDED"),
        (Facts(failed=2), "OBJECTS_FAILED"),
        (Facts(nodes=3, ready_nodes=2), "NODES_NOT_READY"),
        (Facts(issued=now - day, expires=now + day / 10), "CERTIFICATE_EXPIRING"),
        (Facts(round_trip=1.5), "SLOW_LINK"),
        (Facts(clock_skew=-600), "CLOCK_SKEW"),
        (Facts(agent="1.1.9", hub="1.3.0"), "AGENT_VERSION"),
        (Facts(agent="2.3.0", hub="1.3.0"), "AGENT_VERSION"),
        (Facts(flapping=True), "FLAPPING"),
    ):
        assert [r for r, _ in health.problems(found, now)] == [reason]
    assert (health.skew("1.1.0", "1.3.0"), health.skew("1.4", "v1.3.0"), health.skew("dev", "1.3.0")) == (2, -1, 0)


async def test_a_cluster_goes_through_its_states_and_each_change_is_told_once(house: House) -> None:
    """WAITING, JOINING, ONLINE, DEGRADED and back, OFFLINE; reasons keep their time; judging again tells nothing."""
    cluster, uid = await house.cluster(online=False)
    await _certificate(house, uid, f"{uid[:8]}aa", left=timedelta(hours=23))
    await house.sql("UPDATE fleet.clusters SET joined = true WHERE uid = $1", uid)
    await _judged(house)
    assert (await _get(house, cluster)).state == Cluster.JOINING
    keeper = LinkKeeper(house.database, house.clock)
    await keeper.changed(uid, True, VERSION)
    assert (await _get(house, cluster)).state == Cluster.ONLINE
    await house.report(uid, generation=0, confirmation_needed="5 removals at once")
    degraded = await _get(house, cluster)
    assert (degraded.state, [r.reason for r in degraded.reasons]) == (Cluster.DEGRADED, ["CONFIRMATION_NEEDED"])
    house.clock.advance(timedelta(hours=20))
    await _judged(house)
    await _judged(house)
    worse = await _get(house, cluster)
    assert [r.reason for r in worse.reasons] == ["CONFIRMATION_NEEDED", "CERTIFICATE_EXPIRING"]
    assert worse.reasons[0].since_time == degraded.reasons[0].since_time
    assert worse.certificate_expire_time.ToDatetime() > house.clock.now().replace(tzinfo=None)
    await _certificate(house, uid, f"{uid[:8]}bb", left=timedelta(hours=24))
    await house.report(uid, generation=0)
    assert (await _get(house, cluster)).state == Cluster.ONLINE
    await _judged(house)
    house.clock.advance(health.HOLD)
    await _judged(house)
    await keeper.changed(uid, False, "")
    assert (await _get(house, cluster)).state == Cluster.OFFLINE
    names = [(Cluster.State.Name(e.previous_state), Cluster.State.Name(e.state), len(e.reasons)) for e in await _told(house, uid)]
    assert names == [
        ("STATE_UNSPECIFIED", "WAITING", 0), ("WAITING", "JOINING", 0), ("JOINING", "ONLINE", 0), ("ONLINE", "DEGRADED", 1),
        ("DEGRADED", "DEGRADED", 2), ("DEGRADED", "ONLINE", 0), ("ONLINE", "OFFLINE", 0),
    ]  # fmt: skip


async def _recorded(house: House, uid: str) -> list[tuple[str, str, str]]:
    rows = await house.sql(
        "SELECT actor, outcome, request FROM audit.events WHERE method = 'fleet/health' AND request ->> 'uid' = $1 ORDER BY time, id", uid
    )
    assert {(row["actor"], row["outcome"]) for row in rows} <= {("services/gateway", "OK")}
    return [(r["request"]["previous_state"], r["request"]["state"], ",".join(r["request"]["reasons"])) for r in rows]


async def test_each_change_of_state_leaves_an_audit_record_with_it(house: House) -> None:
    """By the platform itself, with the reasons; none when the state stays, nor when the change is rolled back; the removal too."""
    cluster, uid = await house.cluster(online=False)
    keeper = LinkKeeper(house.database, house.clock)
    await keeper.changed(uid, True, VERSION)
    await house.report(uid, generation=0, confirmation_needed="5 removals at once")
    await _judged(house)
    with contextlib.suppress(RuntimeError):
        async with house.database.transaction() as tx:
            await tx.execute("UPDATE fleet.clusters SET online = false WHERE uid = $1", uid)
            assert await health_store.judge(tx, house.clock.now())
            raise RuntimeError
    await keeper.changed(uid, False, "")
    await _delete(house, cluster, force=True)
    assert await _recorded(house, uid) == [
        ("", "WAITING", ""), ("WAITING", "ONLINE", ""), ("ONLINE", "DEGRADED", "CONFIRMATION_NEEDED"), ("DEGRADED", "OFFLINE", ""),
        ("OFFLINE", "REMOVED", ""),
    ]  # fmt: skip


async def test_a_link_that_comes_and_goes_tells_little_and_the_last_state_in_the_end(house: House) -> None:
    """A hundred flaps in a minute: offline at once, online when it has held; audit has as much as the events."""
    for ends_online in (True, False):
        cluster, uid = await house.cluster()
        keeper = LinkKeeper(house.database, house.clock)
        before = len(await _told(house, uid))
        for flap in range(100):
            await keeper.changed(uid, False, "", 2 * flap)
            await keeper.changed(uid, True, VERSION, 2 * flap + 2)
            house.clock.advance(timedelta(seconds=0.6))
        if not ends_online:
            await keeper.changed(uid, False, "", 200)
        assert (await _get(house, cluster)).state == (Cluster.ONLINE if ends_online else Cluster.OFFLINE), "what is shown waits for nothing"
        for _ in range(3):
            await _judged(house)
            house.clock.advance(timedelta(seconds=10))
        told = [e.state for e in (await _told(house, uid))[before:]]
        assert told == ([Cluster.OFFLINE, Cluster.ONLINE] if ends_online else [Cluster.OFFLINE])
        assert [state for _, state, _ in await _recorded(house, uid)][-len(told) :] == [Cluster.State.Name(state) for state in told]


async def test_a_value_that_dances_on_its_limit_is_told_once(house: House) -> None:
    """Alone and beside another reason: told when it comes, and when it is gone for good; another problem is told at once."""
    _, uid = await house.cluster()
    tunnels = _Tunnels({}, {})
    keeper = HealthKeeper(house.database, tunnels, house.clock)
    before = len(await _told(house, uid))

    async def look(round_trip: float, skew: float, times: int = 1) -> None:
        for _ in range(times):
            tunnels._measures = {uid: Measure(round_trip, skew, 0.0)}
            await keeper.look()
            house.clock.advance(timedelta(seconds=10))

    for _ in range(6):
        await look(1.3, 0.0)
        await look(0.9, 0.0)
    for _ in range(6):
        await look(1.3, 600.0)
        await look(0.9, 600.0)
    await look(0.9, 0.0, times=3)
    told = [",".join(r.reason for r in e.reasons) for e in (await _told(house, uid))[before:]]
    assert told == ["SLOW_LINK", "SLOW_LINK,CLOCK_SKEW", ""]


class _Tunnels:
    def __init__(self, measures: dict[str, Measure], serials: dict[str, str]) -> None:
        self._measures, self._serials = measures, serials
        self.dropped: list[str] = []

    def measures(self) -> dict[str, Measure]:
        return self._measures

    def serials(self) -> dict[str, str]:
        return self._serials

    def numbers(self) -> dict[str, int]:
        return {}

    def superseded(self, uid: str, number: int) -> None:
        raise AssertionError(uid, number)

    def disconnect(self, uid: str, why: str) -> bool:
        assert why
        self.dropped.append(uid)
        return True


async def test_what_tunnels_measure_shows_on_the_cluster(house: House) -> None:
    """Round trip, clock, last seen, flapping; a clock ten minutes off and a slow link are told as such."""
    cluster, uid = await house.cluster()
    tunnels = _Tunnels({uid: Measure(1.25, -600.0, 2.0, flapping=True)}, {})
    house.clock.advance(timedelta(hours=1))
    await HealthKeeper(house.database, tunnels, house.clock).look()
    shown = await _get(house, cluster)
    assert [r.reason for r in shown.reasons] == ["SLOW_LINK", "CLOCK_SKEW", "FLAPPING"]
    assert (shown.round_trip.ToTimedelta(), shown.clock_skew.ToTimedelta()) == (timedelta(seconds=1.25), timedelta(minutes=-10))
    assert shown.seen_time.ToDatetime() == house.clock.now().replace(tzinfo=None) - timedelta(seconds=2)


async def test_only_certificates_that_are_good_keep_their_tunnel(house: House) -> None:
    """Revoked, unknown, another cluster's, or of a removed cluster: the tunnel ends; a good one stays."""
    (_, good), (_, revoked), (gone, gone_uid) = await house.cluster(), await house.cluster(), await house.cluster()
    for uid in (good, revoked, gone_uid):
        await _certificate(house, uid, f"{uid}1", left=timedelta(hours=1))
    await house.sql("UPDATE fleet.certificates SET revoked = now() WHERE cluster_uid = $1", revoked)
    await _delete(house, gone)
    held = {good: f"{good}1", revoked: f"{revoked}1", gone_uid: f"{gone_uid}1"}
    tunnels = _Tunnels({}, held)
    assert await HealthKeeper(house.database, tunnels, house.clock).put_out() == 2
    assert sorted(tunnels.dropped) == sorted([revoked, gone_uid])
    held[good] = f"{gone_uid}1"
    tunnels.dropped.clear()
    await HealthKeeper(house.database, tunnels, house.clock).put_out()
    assert good in tunnels.dropped


async def test_a_cluster_has_heard_of_cas_when_its_agent_is_seen_with_a_certificate_that_came_with_them(house: House) -> None:
    """Not when that was issued: the answer may be lost, and retiring the old CA would lock the agent out."""
    name, uid = await house.cluster()
    await _certificate(house, uid, f"{uid}1", left=timedelta(hours=1))
    await _certificate(house, uid, f"{uid}2", left=timedelta(hours=2))
    await house.sql("UPDATE fleet.certificates SET trust = 'new' WHERE serial = $1 RETURNING 1", f"{uid}2")

    async def behind() -> bool:
        async with house.database.transaction(readonly=True) as tx:
            return name in await certificates_store.behind(tx, "new")

    assert await behind(), "none was seen in use"
    await HealthKeeper(house.database, _Tunnels({}, {uid: f"{uid}1"}), house.clock).note()
    assert await behind(), "only the older one was seen"
    await HealthKeeper(house.database, _Tunnels({}, {uid: f"{uid}2"}), house.clock).note()
    assert not await behind()


async def test_a_cluster_leaves_when_it_has_confirmed_its_last_removal(house: House) -> None:
    """DELETING meanwhile: nothing new comes onto it, its name stays taken; then it is gone, and told so."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.obey(uid)
    await house.call("QuotaService/DeleteTenantQuota", _quota(tenant, cluster))
    await _delete(house, cluster)
    assert (await _get(house, cluster)).state == Cluster.DELETING
    with refused("CLUSTER_LEAVING"):
        await house.tenant(cluster)
    with refused("ALREADY_EXISTS"):
        await house.call("ClusterService/CreateCluster", cluster_service_pb2.CreateClusterRequest(cluster_id=cluster))
    await house.report(uid, full=True, generation=(await house.fetch(uid)).generation)
    with refused("NOT_FOUND"):
        await _get(house, cluster)
    last = (await _told(house, uid))[-1]
    assert (last.removed, last.state) == (True, Cluster.DELETING)
    assert await house.sql("SELECT forced FROM fleet.removed_clusters WHERE uid = $1", uid) == [{"forced": False}]
    assert not await house.sql("SELECT 1 FROM fleet.statuses WHERE cluster_uid = $1", uid)


async def test_a_forced_removal_burns_the_names_of_what_it_leaves_behind(house: House) -> None:
    """Environments, quotas and members go at once; their names are never free again; other clusters' stay as they were."""
    cluster, uid = await house.cluster()
    other, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.quota(tenant, other, {"limits.cpu": "20", "limits.memory": "40Gi", "requests.storage": "100Gi"})
    lost = await house.environment(tenant, cluster)
    kept = await house.environment(tenant, other, "prod")
    with refused("CLUSTER_IN_USE"):
        await _delete(house, cluster)
    await _delete(house, cluster, force=True)
    assert house.removed[-1] == uid
    with refused("NOT_FOUND"):
        await house.get_environment(lost.name)
    assert (await house.get_environment(kept.name)).namespace == kept.namespace
    with refused("ALREADY_EXISTS"):
        await house.environment(tenant, other)
    assert await house.sql("SELECT forced, cleaned FROM fleet.removed_clusters WHERE uid = $1", uid) == [{"forced": True, "cleaned": None}]
    again = await house.call("ClusterService/CreateCluster", cluster_service_pb2.CreateClusterRequest(cluster_id=cluster))
    assert again.uid != uid


async def test_a_forced_removal_lets_a_tenant_go_that_waited_for_it_alone(house: House) -> None:
    """The tenant is gone, and its name burnt."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.obey(uid)
    await house.call("ProjectService/DeleteProject", project_service_pb2.DeleteProjectRequest(name=f"tenants/{tenant}/projects/shop"))
    await house.call("TenantService/DeleteTenant", tenant_service_pb2.DeleteTenantRequest(name=f"tenants/{tenant}"))
    await _delete(house, cluster, force=True)
    with refused("NOT_FOUND"):
        await house.get_tenant(tenant)
    with refused("ALREADY_EXISTS"):
        await house.tenant(name=tenant)


async def test_failed_objects_degrade_a_cluster(house: House) -> None:
    """As many as the agent reports; none any more when they are applied."""
    cluster, uid = await house.cluster()
    await house.tenant(cluster)
    await house.report(uid, *await house.statuses(uid, "FAILED", reason="CONFLICT"), full=True)
    shown = await _get(house, cluster)
    assert [(r.reason, r.message[:9]) for r in shown.reasons] == [("OBJECTS_FAILED", "3 objects")]
    await house.obey(uid)
    assert (await _get(house, cluster)).state == Cluster.ONLINE


def _quota(tenant: str, cluster: str) -> Any:
    return quota_service_pb2.DeleteTenantQuotaRequest(name=f"tenants/{tenant}/quotas/{cluster}")


async def test_what_the_owner_denies_is_shown_on_the_cluster(house: House) -> None:
    """As the agent reports it; an agent that knows no policy leaves it absent."""
    cluster, uid = await house.cluster()
    await house.report(uid)
    assert not (await _get(house, cluster)).HasField("local_policy")
    policy = cluster_pb2.LocalPolicy(deny=[cluster_pb2.LocalPolicy.Rule(verbs=["exec"])], problem="")
    await house.report(uid, local_policy=policy)
    await house.report(uid)
    assert (await _get(house, cluster)).local_policy == policy
