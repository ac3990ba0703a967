"""Clusters: who sees what, kubeconfigs, confirmation, links, hints, inventory."""

from __future__ import annotations

import asyncio
import base64
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import yaml
from google.protobuf.field_mask_pb2 import FieldMask

from kubegems.agent.v1 import inventory_service_pb2
from kubegems.fleet.v1 import cluster_access_service_pb2 as access_pb
from kubegems.fleet.v1 import cluster_pb2, cluster_service_pb2, events_pb2
from services.gateway.fleet.hints import Hints
from services.gateway.fleet.links import LinkKeeper
from services.gateway.fleet.version import VERSION
from services.gateway.tenancy.tests.house import HARD, House, refused

Cluster = cluster_pb2.Cluster


async def _get(house: House, cluster: str, user: str = "admin") -> Any:
    return await house.call("ClusterService/GetCluster", cluster_service_pb2.GetClusterRequest(name=f"clusters/{cluster}"), user)


async def test_a_tenants_user_sees_where_its_tenants_may_be(house: House) -> None:
    """Name, state and version of those; others do not exist for it, nor do numbers and uids."""
    cluster, uid = await house.cluster()
    hidden, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    user = await house.user()
    await house.member(f"tenants/{tenant}", user, "MEMBER")
    seen = await _get(house, cluster, user)
    assert (seen.state, seen.uid, seen.desired_generation) == (Cluster.ONLINE, "", 0)
    full = await _get(house, cluster)
    assert (full.uid, full.desired_generation > 0, full.agent_version) == (uid, True, VERSION)
    with refused("NOT_FOUND", f"clusters/{hidden} does not exist"):
        await _get(house, hidden, user)
    with refused("NOT_FOUND", "clusters/none does not exist"):
        await _get(house, "none", user)
    listed = await house.call("ClusterService/ListClusters", cluster_service_pb2.ListClustersRequest(), user)
    assert ([c.name for c in listed.clusters], listed.total_size) == ([f"clusters/{cluster}"], 1)
    waiting = cluster_service_pb2.ListClustersRequest(filter="state = ONLINE", page_size=1)
    assert len((await house.call("ClusterService/ListClusters", waiting)).clusters) == 1


async def test_bad_input_changes_nothing(house: House) -> None:
    """Taken and malformed names, stale etags, clusters in use, generations from the future."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    before = await house.everything()
    with refused("ALREADY_EXISTS", f"clusters/{cluster}"):
        await house.call("ClusterService/CreateCluster", cluster_service_pb2.CreateClusterRequest(cluster_id=cluster))
    with refused("INVALID_ARGUMENT", "cluster_id"):
        await house.call("ClusterService/CreateCluster", cluster_service_pb2.CreateClusterRequest(cluster_id="Local"))
    with refused("CLUSTER_IN_USE", f"tenants/{tenant}"):
        await house.call("ClusterService/DeleteCluster", cluster_service_pb2.DeleteClusterRequest(name=f"clusters/{cluster}"))
    stale = cluster_service_pb2.UpdateClusterRequest(cluster=Cluster(name=f"clusters/{cluster}", display_name="x", etag='"4"'))
    with refused("ABORTED"):
        await house.call("ClusterService/UpdateCluster", stale)
    with refused("INVALID_ARGUMENT", "generation"):
        await house.call(
            "ClusterService/ConfirmCluster", cluster_service_pb2.ConfirmClusterRequest(name=f"clusters/{cluster}", generation=99)
        )
    assert await house.everything() == before


async def test_the_display_name_can_change(house: House) -> None:
    """With the current etag, which then is another."""
    cluster, _ = await house.cluster()
    known = await _get(house, cluster)
    request = cluster_service_pb2.UpdateClusterRequest(
        cluster=Cluster(name=known.name, display_name="Frankfurt", etag=known.etag), update_mask=FieldMask(paths=["display_name"])
    )
    changed = await house.call("ClusterService/UpdateCluster", request)
    assert changed.display_name == "Frankfurt"
    assert changed.etag != known.etag


async def test_kubeconfig_leads_through_the_hub_as_the_caller(house: House) -> None:
    """Server, CA and token; NOT_FOUND where none of the caller's tenants may be."""
    cluster, uid = await house.cluster()
    tenant = await house.tenant(cluster)
    user, stranger = await house.user(), await house.user()
    await house.member(f"tenants/{tenant}", user, "MEMBER")
    elsewhere = await house.tenant((await house.cluster())[0])
    await house.member(f"tenants/{elsewhere}", stranger, "ADMIN")
    request = cluster_service_pb2.GetClusterKubeconfigRequest(name=f"clusters/{cluster}", ttl_seconds=600)
    body = await house.call("ClusterService/GetClusterKubeconfig", request, user)
    assert body.content_type == "application/yaml"
    config = yaml.safe_load(body.data)
    entry = config["clusters"][0]["cluster"]
    assert entry["server"] == f"https://hub:8443/k8s/clusters/{cluster}"
    assert base64.b64decode(entry["certificate-authority-data"]).decode() == house.ca.certificate
    assert config["users"][0]["user"]["token"] == f"{user} {uid} {timedelta(seconds=600)}"
    with refused("NOT_FOUND"):
        await house.call("ClusterService/GetClusterKubeconfig", request, stranger)


async def test_one_kubeconfig_leads_to_all_clusters_of_the_caller(house: House) -> None:
    """Each with a token of its own, or one user whose plugin fetches tokens and no secret at all; others' clusters are not in it."""
    (first, uid), (second, other), (hidden, _) = await house.cluster(), await house.cluster(), await house.cluster()
    tenant = await house.tenant(first)
    await house.quota(tenant, second, HARD)
    user = await house.user()
    await house.member(f"tenants/{tenant}", user, "MEMBER")
    request = cluster_service_pb2.GetClusterKubeconfigRequest(name="clusters/-")
    config = yaml.safe_load((await house.call("ClusterService/GetClusterKubeconfig", request, user)).data)
    names = sorted([first, second])
    assert [c["name"] for c in config["clusters"]] == names
    assert config["current-context"] == names[0]
    tokens = {u["name"]: u["user"]["token"] for u in config["users"]}
    used = {c["name"]: tokens[c["context"]["user"]].split()[1] for c in config["contexts"]}
    assert used == {first: uid, second: other}
    request.credential = cluster_service_pb2.GetClusterKubeconfigRequest.EXEC
    config = yaml.safe_load((await house.call("ClusterService/GetClusterKubeconfig", request, user)).data)
    (entry,) = config["users"]
    assert set(entry["user"]) == {"exec"}
    assert (entry["user"]["exec"]["command"], entry["user"]["exec"]["args"]) == ("kubectl-gems", ["token", "https://hub:8443"])
    assert len(config["contexts"]) == 2
    everything = yaml.safe_load((await house.call("ClusterService/GetClusterKubeconfig", request)).data)
    assert hidden in [c["name"] for c in everything["clusters"]]


async def test_a_stopped_removal_is_shown_and_confirmed(house: House) -> None:
    """What the agent waits for stands on the cluster; the confirmation reaches it, also when it is current."""
    cluster, uid = await house.cluster()
    await house.tenant(cluster)
    state = await house.fetch(uid)
    await house.report(uid, generation=state.generation - 1, confirmation_needed="5 removals at once")
    shown = await _get(house, cluster)
    assert (shown.confirmation_needed, shown.applied_generation) == ("5 removals at once", state.generation - 1)
    request = cluster_service_pb2.ConfirmClusterRequest(name=f"clusters/{cluster}", generation=state.generation)
    await house.call("ClusterService/ConfirmCluster", request)
    current = await house.fetch(uid, state.generation, state.checksum)
    assert (current.unchanged, current.confirmed_generation) == (True, state.generation)


async def test_links_come_and_go(house: House) -> None:
    """WAITING, ONLINE, OFFLINE; each change is told once; a gateway that stops leaves none online."""
    cluster, uid = await house.cluster(online=False)
    assert (await _get(house, cluster)).state == Cluster.WAITING
    keeper = LinkKeeper(house.database, house.clock)
    await keeper.changed(uid, True, VERSION)
    await keeper.changed(uid, True, VERSION)
    assert (await _get(house, cluster)).state == Cluster.ONLINE
    await keeper.changed(uid, False, "")
    gone = await _get(house, cluster)
    assert (gone.state, gone.agent_version) == (Cluster.OFFLINE, VERSION)
    await keeper.changed(uid, True, VERSION)
    await keeper.leave()
    assert (await _get(house, cluster)).state == Cluster.OFFLINE
    rows = await house.sql("SELECT payload FROM fleet.outbox WHERE subject = 'gems.platform.fleet.link-changed' ORDER BY seq")
    told = [e for e in (events_pb2.ClusterLinkChanged.FromString(r["payload"]) for r in rows) if e.uid == uid]
    assert [e.online for e in told] == [True, False, True, False]


async def test_hints_follow_the_commit_and_repeat_while_an_agent_lags(house: House) -> None:
    """A change is hinted at once; if that was lost, again until the agent has applied it."""
    cluster, uid = await house.cluster()
    sent: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    failures = [OSError("NATS is away")]

    async def send(to: str, generation: int) -> None:
        if to == uid and failures:
            raise failures.pop()
        sent.put_nowait((to, generation))

    async def mine() -> int:
        while (found := await sent.get())[0] != uid:
            pass
        return found[1]

    task = asyncio.create_task(Hints(house.database, send, every=0.1).run())
    try:
        async with asyncio.timeout(20):
            await house.tenant(cluster)
            generation = (await house.fetch(uid)).generation
            assert await mine() <= generation
            while await mine() < generation:
                pass
    finally:
        task.cancel()
    await house.report(uid, generation=generation)


async def test_inventory_is_counted_as_the_service_and_kept(house: House) -> None:
    """Whoever looks sees it on the cluster; offline it is UNAVAILABLE with a time to come back."""
    cluster, uid = await house.cluster()
    request = access_pb.CountInventoryRequest(cluster=f"clusters/{cluster}")
    with refused("UNAVAILABLE") as offline:
        await house.call("ClusterAccessService/CountInventory", request, service="worker")
    assert offline.fault is not None
    assert offline.fault.retry_after
    house.links.reachable.add(uid)
    reply = inventory_service_pb2.GetInventoryResponse()
    reply.inventory.kubernetes_version, reply.inventory.nodes = "v1.36.3", 3
    reply.inventory.allocatable["cpu"] = "12"
    house.links.replies["GetInventory"] = reply
    counted = await house.call("ClusterAccessService/CountInventory", request, service="worker")
    assert counted.inventory == (await _get(house, cluster)).inventory
    assert house.links.principals[-1].user == "gems:service:inventory"
    links = (await house.call("ClusterAccessService/ListLinks", access_pb.ListLinksRequest(), service="msgbus")).links
    assert {link.uid: link.online for link in links}[uid]
    with refused("UNAUTHENTICATED"):
        await house.call("ClusterAccessService/CountInventory", request)


async def test_a_hub_service_asks_the_cluster_as_a_user(house: House) -> None:
    """The user's own principal goes along; an unknown user is NOT_FOUND and nothing is sent."""
    cluster, uid = await house.cluster()
    answer: Any = _Exchange(b'{"kind":"PodList"}')
    house.links.replies["/api/v1/pods"] = answer
    request = access_pb.RequestKubernetesRequest(cluster=f"clusters/{cluster}", username="dev", method="GET", path="/api/v1/pods")
    reply = await house.call("ClusterAccessService/RequestKubernetes", request, service="worker")
    assert (reply.status, reply.body) == (200, b'{"kind":"PodList"}')
    assert house.links.principals[-1] == f"gems:user:dev in {uid}"
    assert answer.closed
    sent = len(house.links.principals)
    request.username = "nobody"
    with refused("NOT_FOUND", "users/nobody"):
        await house.call("ClusterAccessService/RequestKubernetes", request, service="worker")
    assert len(house.links.principals) == sent


async def test_an_environment_can_be_located(house: House) -> None:
    """Cluster and namespace; NOT_FOUND otherwise."""
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    env = await house.environment(tenant, cluster)
    found = await house.call(
        "ClusterAccessService/LocateEnvironment", access_pb.LocateEnvironmentRequest(environment=env.name), service="worker"
    )
    assert (found.cluster, found.namespace) == (f"clusters/{cluster}", env.namespace)
    with refused("NOT_FOUND"):
        await house.call(
            "ClusterAccessService/LocateEnvironment", access_pb.LocateEnvironmentRequest(environment=f"{env.name}x"), service="worker"
        )


class _Exchange(SimpleNamespace):
    """An answer of the API server."""

    def __init__(self, body: bytes) -> None:
        super().__init__(status=200, body=body, closed=False)

    async def whole(self, most: int) -> bytes:
        return bytes(self.body[:most])

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True
