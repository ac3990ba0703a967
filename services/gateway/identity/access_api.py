"""AccessService: what the hub's other services ask about callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from kubegems.identity.v1 import access_service_pb2 as pb
from libs.faults import Invalid, NotFound
from libs.rpc.call import Call, Rights, Scopes
from services.gateway.identity.api_key_domain import Limits, session_uid
from services.gateway.identity.directory import Directory, Places, Standing
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.keys import Keyring
from services.gateway.identity.narrowed import KeyRights
from services.gateway.identity.principals import Place
from services.gateway.identity.rights import known_permissions

HEARTBEAT = 1.5  # seconds; the promise is 2
_SEE = "workloads.objects.get"
_SEE_JOBS = "jobs.jobs.get"
_Reply = pb.WatchGrantsResponse


class AccessService:
    """Serves `kubegems.identity.v1.AccessService` to hub services."""

    def __init__(self, directory: Directory, caller_keys: Keyring) -> None:
        self._directory = directory
        self._caller_keys = caller_keys

    async def ListCallerKeys(self, _request: pb.ListCallerKeysRequest, _call: Call) -> pb.ListCallerKeysResponse:
        """The keys that caller contexts are signed with, as they are now."""
        await self._caller_keys.look()
        keys = [pb.CallerKey(kid=kid, public_key=public) for kid, public in self._caller_keys.public.items()]
        return pb.ListCallerKeysResponse(keys=keys)

    async def CheckAccess(self, request: pb.CheckAccessRequest, _call: Call) -> pb.CheckAccessResponse:
        """Whether a user holds a permission at a scope now."""
        if request.permission not in known_permissions():
            raise Invalid.one("permission", f"there is no permission `{request.permission}`")
        standing = await self._directory.standing_of(request.username)
        allowed = standing is not None and standing.rights.scopes(request.permission).covers(request.scope)
        return pb.CheckAccessResponse(allowed=allowed)

    async def ListAudiences(self, request: pb.ListAudiencesRequest, _call: Call) -> pb.ListAudiencesResponse:
        """Whose messages a user gets."""
        standing = await self._directory.standing_of(request.username)
        if standing is None:
            raise NotFound(f"users/{request.username} does not exist", {"resource_name": f"users/{request.username}"})
        return pb.ListAudiencesResponse(audiences=audiences(standing))

    async def WatchGrants(self, request: pb.WatchGrantsRequest, _call: Call) -> AsyncIterator[pb.WatchGrantsResponse]:
        """A snapshot at once and at each change, heartbeats between, ENDED at the end of session or user.

        While PostgreSQL is away nothing is said for certain: the stream fails with Unavailable.
        """
        loop = asyncio.get_running_loop()
        beat = 0.0
        seen: tuple[Watched, Places] | None = None
        last = _Reply()
        while True:
            changed = self._directory.changed
            watched = await self._watched(request)
            if watched is None:
                yield _Reply(kind=_Reply.ENDED)
                return
            now = (watched, self._directory.places)
            if seen is None or now[0] != seen[0] or now[1] is not seen[1]:
                seen, grants = now, snapshot(watched.standing, now[1], watched.rights(now[1]))
                if grants != last:
                    last, beat = grants, loop.time() + HEARTBEAT
                    told = _Reply()
                    told.CopyFrom(grants)
                    told.change_time.GetCurrentTime()
                    yield told
                    continue
            if loop.time() >= beat:  # also while others' changes keep waking this loop
                beat = loop.time() + HEARTBEAT
                yield _Reply(kind=_Reply.HEARTBEAT)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(beat):
                    await changed.wait()

    async def _watched(self, request: pb.WatchGrantsRequest) -> Watched | None:
        """The user's standing, and what narrows it, while the session or API key lives."""
        standing = await self._directory.standing_of(request.username)
        if standing is None or not request.session:
            return Watched(standing, None) if standing else None
        try:
            session = await self._directory.session(session_uid(request.session))
        except ValueError:
            return None
        return Watched(standing, session.limits) if session and session.user_uid == standing.account.uid else None


@dataclass(frozen=True, slots=True)
class Watched:
    """Whose grants are told: a user, cut down by an API key's limits if it came by one."""

    standing: Standing
    limits: Limits | None

    def rights(self, places: Places) -> Rights:
        """What it may do now."""
        return self.standing.rights if self.limits is None else KeyRights(self.standing.rights, self.limits, places)


def snapshot(standing: Standing, places: Places, rights: Rights) -> pb.WatchGrantsResponse:
    """All that a user, or a key of its, may see in clusters."""
    everything = rights.scopes(_SEE).everything and rights.scopes(_SEE_JOBS).everything
    scopes = [
        pb.GrantedScope(name=place.name, cluster_uid=place.cluster_uid, namespace=place.namespace, cluster=f"clusters/{place.cluster}")
        for place in _visible(places, standing, rights.scopes(_SEE))
    ]
    jobs = rights.scopes(_SEE_JOBS)
    return _Reply(
        kind=_Reply.SNAPSHOT, everything=everything, scopes=scopes, job_scopes=sorted(jobs.trees | jobs.exact),
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
