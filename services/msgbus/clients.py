"""What msgbus asks of the gateway: keys, grants, and which clusters there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

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

    def grants(self, username: str, session: str) -> AsyncIterator[identity_pb2.WatchGrantsResponse]:
        """What a user may see, at every change; without limit of time."""
        request = identity_pb2.WatchGrantsRequest(username=username, session=session)
        stream: AsyncIterator[identity_pb2.WatchGrantsResponse] = self._access.WatchGrants(request)  # type: ignore[assignment] # an async generator
        return stream

    async def clusters(self) -> dict[str, str]:
        """Names of the clusters by uid."""
        reply = await self._clusters.ListLinks(access_pb2.ListLinksRequest())
        return {link.uid: link.cluster for link in reply.links}
