"""ClusterService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Protocol, cast

from google.api import httpbody_pb2
from google.protobuf import empty_pb2

from kubegems.agent.v1 import preview_service_pb2
from kubegems.fleet.v1 import cluster_pb2, cluster_service_pb2, desired_diff_pb2
from libs import pg
from libs.clock import Clock, SystemClock, new_id
from libs.faults import AlreadyExists, Invalid, Precondition, Unavailable
from libs.kube.principal import Principal as ServicePrincipal
from libs.pg import Record, Tx, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call, Caller
from services.gateway.fleet import clusters_store, desired, health_store, kubeconfig, messages, removal
from services.gateway.fleet.access_api import Links
from services.gateway.fleet.joining import Joining
from services.gateway.tenancy import masks
from services.gateway.tenancy.domain import names

VIEW = "fleet.clusters.view"
EVERY = "clusters/-"
_KUBECONFIG = "fleet.clusters.kubeconfig"
DESIRED_STATE = ServicePrincipal("gems:service:desired-state")
PREVIEW_SECONDS = 30.0
_PREVIEW = preview_service_pb2.DESCRIPTOR.services_by_name["PreviewService"].methods_by_name["PreviewDesiredState"]


class ClusterInUse(Precondition):
    """Tenants have quota on the cluster; metadata: `tenants`."""

    reason = "CLUSTER_IN_USE"


class Issued(Protocol):
    """A token for `/k8s`."""

    @property
    def token(self) -> str:
        """The bearer token."""
        ...


TokenIssuer = Callable[[Caller, str, timedelta | None], Issued]


class ClusterService:
    """Keeps the member clusters.

    Args:
        pages: signs page tokens.
        joining: where the hub is.
        kubeconfig_token: makes a token for a caller and a cluster's uid, for so long (None: the issuer's default).
        on_removed: told the uid of a removed cluster after the commit, to cut its links.
        links: the tunnels, to ask clusters what would change.
        clock: the time.
    """

    def __init__(
        self,
        pages: Pages,
        *,
        joining: Joining,
        kubeconfig_token: TokenIssuer,
        on_removed: Callable[[str], Awaitable[None] | None] = lambda _: None,
        links: Links | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._pages = pages
        self._joining = joining
        self._kubeconfig_token = kubeconfig_token
        self._on_removed = on_removed
        self._links = links
        self._clock = clock or SystemClock()

    async def CreateCluster(self, request: cluster_service_pb2.CreateClusterRequest, call: Call) -> cluster_pb2.Cluster:
        """Adds a cluster; AlreadyExists."""
        tx = await pg.tx(call)
        name = f"clusters/{request.cluster_id}"
        if not await clusters_store.insert(tx, new_id(), request.cluster_id, request.cluster.display_name):
            raise AlreadyExists(
                f"{name} is taken; choose another name", {"resource_type": "kubegems.fleet.v1.Cluster", "resource_name": name}
            )
        call.resources.append(name)
        row = await clusters_store.get(tx, request.cluster_id)
        await health_store.judge(tx, self._clock.now(), [row["uid"]])
        return messages.cluster(row, full=True)

    async def GetCluster(self, request: cluster_service_pb2.GetClusterRequest, call: Call) -> cluster_pb2.Cluster:
        """A cluster; NotFound, also where none of the caller's tenants may be."""
        return _message(call, await _visible(await pg.tx(call), call, request.name, "fleet.clusters.get"))

    async def ListClusters(self, request: cluster_service_pb2.ListClustersRequest, call: Call) -> cluster_service_pb2.ListClustersResponse:
        """The clusters that the caller may see."""
        tx = await pg.tx(call)
        where = lists.Where()
        scopes = call.caller.rights.scopes("fleet.clusters.list")
        if not scopes.everything:
            where.add("('clusters/' || c.name) = ANY({}::text[])", sorted(scopes.exact | scopes.trees))
        found = await lists.read(tx, self._pages, call, request, source=clusters_store.SOURCE, where=where)
        shown = [_message(call, row) for row in found.rows]
        return cluster_service_pb2.ListClustersResponse(clusters=shown, next_page_token=found.token, total_size=found.total)

    async def UpdateCluster(self, request: cluster_service_pb2.UpdateClusterRequest, call: Call) -> cluster_pb2.Cluster:
        """Changes the display name; NotFound, Stale."""
        changed = masks.paths(request.cluster, request.update_mask, known=("display_name",))
        (cluster,) = names.given(request.cluster.name, "cluster.name", "clusters/{cluster}")
        tx = await pg.tx(call)
        uid = await clusters_store.hold(tx, cluster, exclusively=True)
        row = await clusters_store.get(tx, cluster)
        pg.check_etag(request.cluster.etag, row["version"])
        if changed:
            await clusters_store.rename(tx, uid, request.cluster.display_name)
        return messages.cluster(await clusters_store.get(tx, cluster), full=True)

    async def DeleteCluster(self, request: cluster_service_pb2.DeleteClusterRequest, call: Call) -> empty_pb2.Empty:
        """Removes a cluster, or starts to while it has removals to confirm; ClusterInUse names the tenants that have quota there."""
        (cluster,) = names.parts(request.name)
        tx = await pg.tx(call)
        row = await removal.lock(tx, cluster)
        pg.check_etag(request.etag, row["version"])
        uid = row["uid"]
        tenants = await clusters_store.tenants_on(tx, uid)
        if request.force:
            await removal.force(tx, row)
        elif tenants:
            told = ", ".join(names.tenant(t) for t in tenants[:20])
            raise ClusterInUse(f"{request.name} is in use by {told}; delete their quotas there first", {"tenants": ",".join(tenants[:20])})
        elif row["joined"] and await desired.tombstones(tx, uid):
            await clusters_store.set_leaving(tx, uid)
            await health_store.judge(tx, self._clock.now(), [uid])
            return empty_pb2.Empty()
        else:
            await removal.now(tx, row, forced=False)
        tx.after_commit(lambda: self._on_removed(str(uid)))
        return empty_pb2.Empty()

    async def PauseCluster(self, request: cluster_service_pb2.PauseClusterRequest, call: Call) -> cluster_pb2.Cluster:
        """Stops applying desired state to a cluster; harmless when it is paused already."""
        return await self._set_paused(request.name, call, paused=True)

    async def ResumeCluster(self, request: cluster_service_pb2.ResumeClusterRequest, call: Call) -> cluster_pb2.Cluster:
        """Applies desired state again; harmless when it was not paused."""
        return await self._set_paused(request.name, call, paused=False)

    async def _set_paused(self, name: str, call: Call, *, paused: bool) -> cluster_pb2.Cluster:
        (cluster,) = names.parts(name)
        tx = await pg.tx(call)
        uid = await clusters_store.hold(tx, cluster, exclusively=True)
        if await clusters_store.set_paused(tx, uid, paused=paused):
            await desired.wake(tx, uid)
        return messages.cluster(await clusters_store.get(tx, cluster), full=True)

    async def DiffCluster(self, request: cluster_service_pb2.DiffClusterRequest, call: Call) -> desired_diff_pb2.DesiredDiff:
        """What would change in the cluster; NotFound, Unavailable with a delay when it is offline."""
        (cluster,) = names.parts(request.name)
        uid = (await clusters_store.get(await pg.tx(call), cluster))["uid"]
        if self._links is None:
            raise Unavailable("clusters cannot be reached from here")
        asked = preview_service_pb2.PreviewDesiredStateRequest()
        reply = await self._links.call(str(uid), _PREVIEW, asked, DESIRED_STATE, PREVIEW_SECONDS, cluster=cluster)
        return cast("desired_diff_pb2.DesiredDiff", reply.diff)

    async def ConfirmCluster(self, request: cluster_service_pb2.ConfirmClusterRequest, call: Call) -> cluster_pb2.Cluster:
        """Lets a stopped removal go on; Invalid for a generation that is not there yet."""
        (cluster,) = names.parts(request.name)
        tx = await pg.tx(call)
        row = await clusters_store.get(tx, cluster)
        if not 0 < request.generation <= row["desired_generation"]:
            raise Invalid.one("generation", f"{request.generation} is none; the newest is {row['desired_generation']}")
        await desired.confirm(tx, row["uid"], request.generation)
        return messages.cluster(await clusters_store.get(tx, cluster), full=True)

    async def GetClusterKubeconfig(self, request: cluster_service_pb2.GetClusterKubeconfigRequest, call: Call) -> httpbody_pb2.HttpBody:
        """A kubeconfig that reaches one cluster, or all that the caller may see, as the caller; NotFound, also where it may not."""
        tx = await pg.tx(call)
        if request.name == EVERY:
            rows = [row for row in await clusters_store.all_links(tx) if call.caller.allows(_KUBECONFIG, f"clusters/{row['name']}")]
        else:
            rows = [await _visible(tx, call, request.name, _KUBECONFIG)]
        tokens = None
        if request.credential != cluster_service_pb2.GetClusterKubeconfigRequest.EXEC:
            ttl = timedelta(seconds=request.ttl_seconds) if request.ttl_seconds else None
            tokens = {row["name"]: self._kubeconfig_token(call.caller, str(row["uid"]), ttl).token for row in rows}
        text = kubeconfig.render(
            edge_url=self._joining.edge_url, ca=self._joining.ca, username=call.caller.id,
            clusters=[row["name"] for row in rows], tokens=tokens,
        )  # fmt: skip
        return httpbody_pb2.HttpBody(content_type="application/yaml", data=text.encode())


async def _visible(tx: Tx, call: Call, name: str, permission: str) -> Record:
    (cluster,) = names.parts(name)
    if not call.caller.allows(permission, name):
        raise clusters_store.missing(cluster)
    return await clusters_store.get(tx, cluster)


def _message(call: Call, row: Record) -> cluster_pb2.Cluster:
    return messages.cluster(row, full=call.caller.allows(VIEW, f"clusters/{row['name']}"))
