"""AccessService: what the hub's other services ask about callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

from kubegems.identity.v1 import access_service_pb2 as pb
from libs.faults import Invalid, NotFound
from libs.rpc.call import Call
from services.gateway.identity.directory import Directory
from services.gateway.identity.grants import audiences
from services.gateway.identity.keys import Keyring
from services.gateway.identity.rights import known_permissions
from services.gateway.identity.watching import Key, Watch, Watches

_MOST_BYTES = 1024 * 1024
_Reply = pb.WatchGrantsResponse


class AccessService:
    """Serves `kubegems.identity.v1.AccessService` to hub services."""

    def __init__(self, directory: Directory, caller_keys: Keyring) -> None:
        self._directory = directory
        self._caller_keys = caller_keys
        self._watches = Watches(directory)

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
        """A snapshot at once and at each change, heartbeats between, ENDED at the end of session or user."""
        watch = Watch()
        watch.add([_key(request)])
        async with aclosing(self._watches.news(watch)) as news:
            async for found in news:
                for _, grants in found:
                    yield grants
                    if grants.kind == _Reply.ENDED:
                        return
                if not found:
                    yield _Reply(kind=_Reply.HEARTBEAT)

    async def WatchSessions(self, _request: pb.WatchSessionsRequest, call: Call) -> AsyncIterator[pb.WatchSessionsResponse]:
        """The watch's name, then what is new of its sessions, in messages of bounded size, and heartbeats."""
        with self._watches.opened(call.caller.id) as (name, watch):
            yield pb.WatchSessionsResponse(watch=name)
            async with aclosing(self._watches.news(watch)) as news:
                async for found in news:
                    for message in _messages(found):
                        yield message

    async def UpdateWatch(self, request: pb.UpdateWatchRequest, call: Call) -> pb.UpdateWatchResponse:
        """Changes what an open watch tells of."""
        watch = self._watches.find(request.watch, call.caller.id)
        watch.remove(_key(one) for one in request.remove)
        watch.add(_key(one) for one in request.add)
        return pb.UpdateWatchResponse()


def _key(one: pb.WatchGrantsRequest) -> Key:
    return one.username, one.session


def _messages(found: list[tuple[Key, pb.WatchGrantsResponse]]) -> Iterator[pb.WatchSessionsResponse]:
    """News as messages of about a megabyte at most; one message for none."""
    message, size = pb.WatchSessionsResponse(), 0
    for (username, session), grants in found:
        if size > _MOST_BYTES:
            yield message
            message, size = pb.WatchSessionsResponse(), 0
        message.sessions.add(of=pb.WatchGrantsRequest(username=username, session=session), grants=grants)
        size += grants.ByteSize()
    yield message
