"""A double of the gateway's internal services, which a test tells what to answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client import CollectorRegistry

from kubegems.fleet.v1 import cluster_access_service_pb2 as fleet
from kubegems.identity.v1 import access_service_pb2 as access
from libs import rpc
from libs.clock import new_id
from libs.crypt.signing import SigningKey
from libs.rpc.call import Call, Scopes
from tests.integration.push.cluster import UID

ACME = access.GrantedScope(name="tenants/acme/projects/shop/environments/dev", cluster_uid=UID, namespace="acme", cluster="clusters/local")
GLOBEX = access.GrantedScope(
    name="tenants/globex/projects/x/environments/dev", cluster_uid=UID, namespace="globex", cluster="clusters/local"
)
_Snapshot = access.WatchGrantsResponse.SNAPSHOT


class Rights:
    """A caller that may do what the gateway has let through."""

    def scopes(self, permission: str) -> Scopes:
        """Everywhere, for `admin`'s lists."""
        return Scopes(everything=False, exact=frozenset({""}))


class Hub:
    """Gateway's internal services, as a test tells them to answer."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key
        self.grants: dict[str, access.WatchGrantsResponse] = {}
        self.ended: set[str] = set()
        self.watches: dict[str, dict[tuple[str, str], access.WatchGrantsResponse | None]] = {}
        self.changed = asyncio.Event()
        self.interest: dict[str, dict[str, list[str]]] = {}
        self.online = True
        self.asked: list[str] = []

    def grant(self, user: str, *scopes: access.GrantedScope, everything: bool = False, audiences: tuple[str, ...] = ()) -> None:
        """What a user may see from now on."""
        message = access.WatchGrantsResponse(
            kind=_Snapshot, everything=everything, scopes=scopes, audiences=[f"users/{user}", "platform", *audiences]
        )
        self.grants[user] = message
        self._stir()

    @property
    def wanted(self) -> set[str]:
        """Kinds that someone watches."""
        return {resource for clusters in self.interest.values() for resource in clusters.get(UID, ())}

    async def ListCallerKeys(self, request: Any, call: Call) -> access.ListCallerKeysResponse:
        """The one key."""
        return access.ListCallerKeysResponse(keys=[access.CallerKey(kid=self.key.kid, public_key=self.key.public)])

    async def CheckAccess(self, request: Any, call: Call) -> access.CheckAccessResponse:
        """Yes."""
        return access.CheckAccessResponse(allowed=True)

    async def ListAudiences(self, request: access.ListAudiencesRequest, call: Call) -> access.ListAudiencesResponse:
        """Those of the grants."""
        return access.ListAudiencesResponse(audiences=self.grants[request.username].audiences)

    async def WatchGrants(self, request: Any, call: Call) -> AsyncIterator[access.WatchGrantsResponse]:
        """Nobody asks for one session."""
        raise NotImplementedError
        yield

    async def WatchSessions(self, request: Any, call: Call) -> AsyncIterator[access.WatchSessionsResponse]:
        """What `grant` said of the sessions of a watch, at once and at each change."""
        name = new_id().hex
        told = self.watches.setdefault(name, {})
        yield access.WatchSessionsResponse(watch=name)
        while True:
            changed = self.changed
            message = access.WatchSessionsResponse()
            for key, last in list(told.items()):
                now = self.grants.get(key[0])
                if key[0] in self.ended:
                    message.sessions.append(_said(key, access.WatchGrantsResponse(kind=access.WatchGrantsResponse.ENDED)))
                    del told[key]
                elif now is not None and now is not last:
                    told[key] = now
                    message.sessions.append(_said(key, now))
            yield message
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await changed.wait()

    async def UpdateWatch(self, request: access.UpdateWatchRequest, call: Call) -> access.UpdateWatchResponse:
        """Other sessions."""
        watch = self.watches[request.watch]
        for one in request.remove:
            watch.pop((one.username, one.session), None)
        watch.update({(one.username, one.session): None for one in request.add})
        self._stir()
        return access.UpdateWatchResponse()

    def _stir(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def ListLinks(self, request: Any, call: Call) -> fleet.ListLinksResponse:
        """The one cluster."""
        return fleet.ListLinksResponse(links=[fleet.ListLinksResponse.Link(cluster="clusters/local", uid=UID, online=self.online)])

    async def ReportInterest(self, request: fleet.ReportInterestRequest, call: Call) -> fleet.ReportInterestResponse:
        """Keeps it."""
        self.interest[request.replica] = {one.cluster_uid: list(one.resources) for one in request.clusters}
        return fleet.ReportInterestResponse()

    async def CountInventory(self, request: Any, call: Call) -> fleet.CountInventoryResponse:
        """Nothing."""
        return fleet.CountInventoryResponse()

    async def LocateEnvironment(self, request: Any, call: Call) -> fleet.LocateEnvironmentResponse:
        """Nowhere."""
        return fleet.LocateEnvironmentResponse()

    async def RequestKubernetes(self, request: fleet.RequestKubernetesRequest, call: Call) -> fleet.RequestKubernetesResponse:
        """Says who asked for what."""
        self.asked.append(f"{request.username} {request.path}")
        body = b'{"metadata":{"name":"it","managedFields":[]},"data":{"a":"b"}}'
        return fleet.RequestKubernetesResponse(status=200, body=body)


def _said(key: tuple[str, str], grants: access.WatchGrantsResponse) -> access.SessionGrants:
    """What is told of a session."""
    said = access.SessionGrants(of=access.WatchGrantsRequest(username=key[0], session=key[1]), grants=grants)
    if grants.kind == _Snapshot:
        said.grants.change_time.GetCurrentTime()
    return said


async def serve(hub: Hub, tls: rpc.Tls) -> tuple[rpc.Server, str]:
    """Serves it; the server and its address."""
    found = (access.DESCRIPTOR, fleet.DESCRIPTOR)
    methods = [m for file in found for s in file.services_by_name.values() for m in rpc.methods(s, hub)]
    server = rpc.Server(rpc.Pipeline(methods, registry=CollectorRegistry()))
    port = server.listen("127.0.0.1:0", tls, require_client=True)
    await server.start()
    return server, f"127.0.0.1:{port}"
