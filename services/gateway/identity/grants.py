"""What a user, or a key of its, may see in clusters, in the words of AccessService."""

from __future__ import annotations

from collections.abc import Iterable

from kubegems.identity.v1 import access_service_pb2 as pb
from libs.rpc.call import Rights, Scopes
from services.gateway.identity.directory import Places, Standing
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.principals import Place

_SEE = "workloads.objects.get"
_SEE_JOBS = "jobs.jobs.get"
_Reply = pb.WatchGrantsResponse


def snapshot(standing: Standing, places: Places, rights: Rights) -> pb.WatchGrantsResponse:
    """All that a user, or a key of its, may see in clusters."""
    everything = rights.scopes(_SEE).everything and rights.scopes(_SEE_JOBS).everything
    scopes = [
        pb.GrantedScope(name=place.name, cluster_uid=place.cluster_uid, namespace=place.namespace, cluster=f"clusters/{place.cluster}")
        for place in _visible(places, standing, rights.scopes(_SEE))
    ]
    jobs = rights.scopes(_SEE_JOBS)
    return _Reply(
        kind=_Reply.SNAPSHOT, everything=everything, scopes=scopes,
        job_scopes=[""] if jobs.everything else sorted(jobs.trees | jobs.exact),
        audiences=audiences(standing) if rights is standing.rights else (),
    )  # fmt: skip


def audiences(standing: Standing) -> list[str]:
    """Whose messages a user gets: its own, the platform's, its tenants', and those to each role that it holds."""
    account = standing.account
    found = {f"users/{account.username}", "platform", f"platform/roles/{account.platform_role.value.lower()}"}
    for membership in account.memberships:
        found.add(f"tenants/{membership.tenant}")
        if not membership.suspended:
            found |= {membership.scope, f"{membership.scope}/roles/{membership.role.value[1].lower()}"}
    return sorted(found)


def _visible(places: Places, standing: Standing, held: Scopes) -> Iterable[Place]:
    if held.everything or held.empty:
        return places.all if held.everything else ()
    if standing.account.platform_role is not PlatformRole.USER:
        return [place for place in places.all if held.covers(place.name)]
    tenants = sorted({m.tenant for m in standing.account.memberships})
    return [place for tenant in tenants for place in places.by_tenant.get(tenant, ()) if held.covers(place.name)]
