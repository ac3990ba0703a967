"""What msgbus asks of the gateway: keys, grants, and which clusters there are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing

from kubegems.fleet.v1 import cluster_access_service_pb2 as access_pb2
from kubegems.fleet.v1.cluster_access_service_pb2_grpc import ClusterAccessServiceStub
from kubegems.identity.v1 import access_service_pb2 as identity_pb2
from kubegems.identity.v1.access_service_pb2_grpc import AccessServiceStub
from libs.rpc import Channel


class Gateway:
    """The gateway's internal services; each call raises Faults and has a deadline."""

    def __init__(self, channel: Channel) -> None:
        self._access = channel.stub(AccessServiceStub)
        self._clusters = channel.stub(ClusterAccessServiceStub)

    async def caller_keys(self) -> Mapping[str, bytes]:
        """Keys that caller contexts are signed with."""
        reply = await self._access.ListCallerKeys(identity_pb2.ListCallerKeysRequest())
        return {key.kid: key.public_key for key in reply.keys}

    async def audiences(self, username: str) -> list[str]:
        """Whose messages a user gets; NotFound for one who is disabled or gone."""
        return list((await self._access.ListAudiences(identity_pb2.ListAudiencesRequest(username=username))).audiences)

    async def interest(self, replica: str, wanted: Mapping[str, list[str]]) -> None:
        """Reports what is watched here beyond the base set, by cluster uid."""
        request = access_pb2.ReportInterestRequest(replica=replica)
        for uid, resources in wanted.items():
            request.clusters.add(cluster_uid=uid, resources=resources)
        await self._clusters.ReportInterest(request, timeout=5)

    async def kubernetes(self, cluster: str, username: str, path: str) -> tuple[int, bytes]:
        """An API server's answer to a GET as a user: status and body."""
        request = access_pb2.RequestKubernetesRequest(cluster=cluster, username=username, method="GET", path=path)
        reply = await self._clusters.RequestKubernetes(request, timeout=5)
        return reply.status, reply.body

    async def clusters(self) -> list[access_pb2.ListLinksResponse.Link]:
        """All clusters, with whether their agents are connected."""
        reply = await self._clusters.ListLinks(access_pb2.ListLinksRequest())
        return list(reply.links)


class Rights:
    """AccessService as the watch of rights asks it: both calls must reach the same replica.

    Args:
        connect: makes a channel of one connection; each watch has its own, so that one that a gateway has let hang is left behind.
    """

    def __init__(self, connect: Callable[[], Channel]) -> None:
        self._connect = connect
        self._access: AccessServiceStub | None = None

    async def watch(self) -> AsyncIterator[identity_pb2.WatchSessionsResponse]:
        """What the sessions that `update` adds may see, at every change; without limit of time."""
        channel = self._connect()
        try:
            access = self._access = channel.stub(AccessServiceStub)
            told: AsyncGenerator[identity_pb2.WatchSessionsResponse, None] = access.WatchSessions(identity_pb2.WatchSessionsRequest())  # type: ignore[assignment] # an async generator
            async with aclosing(told):
                async for message in told:
                    yield message
        finally:
            await channel.close()

    async def update(self, watch: str, add: Sequence[tuple[str, str]], remove: Sequence[tuple[str, str]]) -> None:
        """Adds sessions to the watch that was opened last and takes others out: pairs of user name and session."""
        assert self._access is not None, "a watch is open"
        request = identity_pb2.UpdateWatchRequest(watch=watch)
        for into, keys in ((request.add, add), (request.remove, remove)):
            for username, session in keys:
                into.add(username=username, session=session)
        await self._access.UpdateWatch(request, timeout=5)
