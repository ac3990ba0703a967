"""The caller context: how the gateway tells an inner service, signed and for one call, who calls and where it may.

A context is a JWT for one service (audience), one method and at most 60 s. It is believed only from the gateway's own
certificate, so a stolen context is of no use to anybody else. It carries the scopes of the method's permission alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from libs.crypt import signing
from libs.faults import Unauthenticated
from libs.rpc.call import Call, Caller, Kind, Scopes
from libs.rpc.peers import HUB

HEADER = "kubegems-caller"
LIFETIME = timedelta(seconds=60)
GATEWAY = HUB + "gateway"
_REFRESH_SECONDS = 1.0  # an unknown key id asks the gateway at most that often
_KIND = {kind.value: kind for kind in Kind}
FetchKeys = Callable[[], Awaitable[Mapping[str, bytes]]]


class ContextRights:
    """The one permission that a context speaks of."""

    def __init__(self, permission: str, scopes: Scopes) -> None:
        self._permission, self._scopes = permission, scopes

    def scopes(self, permission: str) -> Scopes:
        """Where it is held; any other permission nowhere."""
        return self._scopes if permission == self._permission else Scopes()


def sign(key: signing.SigningKey, call: Call, audience: str, *, now: datetime) -> str:
    """The context of an authorised call for the service that will answer it."""
    caller, permission = call.caller, call.method.rule.permission
    held = caller.rights.scopes(permission) if permission else Scopes()
    claims = {
        "sub": caller.id,
        "kind": caller.kind.value,
        "uid": caller.uid,
        "session": caller.session,
        "method": call.method.path,
        "scopes": {"everything": held.everything, "trees": sorted(held.trees), "exact": sorted(held.exact)},
        "origin": {"address": call.address, "user_agent": call.user_agent, "transport": call.transport, "request_id": call.request_id},
    }
    return key.token(audience, claims, now=now, lifetime=LIFETIME)


class CallerContexts:
    """Believes contexts: the `authenticate` of an inner service's pipeline.

    Args:
        audience: this service's name.
        fetch: the keys now valid, kid → raw public key; asked at the first call and for an unknown kid.
    """

    def __init__(self, audience: str, fetch: FetchKeys) -> None:
        self._audience, self._fetch = audience, fetch
        self._keys: Mapping[str, bytes] = {}
        self._fetched = -math.inf
        self._fetching = asyncio.Lock()

    async def __call__(self, call: Call) -> Caller:
        """The caller that the context names; the call's origin becomes the client's. Raises Unauthenticated."""
        if call.peer != GATEWAY:
            raise Unauthenticated("a caller context is believed from the gateway only")
        token = call.metadata.pop(HEADER, "")
        claims = await self._claims(token)
        if claims.get("method") != call.method.path or claims.get("kind") not in _KIND:
            raise Unauthenticated("the caller context is not for this call")
        origin = claims["origin"]
        call.address, call.user_agent = origin["address"], origin["user_agent"]
        call.transport, call.request_id = origin["transport"], origin["request_id"]
        call.response_headers["kubegems-request-id"] = call.request_id
        scopes = claims["scopes"]
        held = Scopes(scopes["everything"], frozenset(scopes["trees"]), frozenset(scopes["exact"]))
        rights = ContextRights(call.method.rule.permission, held)
        return Caller(_KIND[claims["kind"]], claims["sub"], claims["uid"], claims["session"], rights)

    async def _claims(self, token: str) -> dict[str, Any]:
        kid = signing.key_id(token)
        if kid not in self._keys:
            async with self._fetching:  # who comes while another asks waits for the same answer
                if kid not in self._keys and time.monotonic() - self._fetched >= _REFRESH_SECONDS:
                    self._keys = await self._fetch()
                    self._fetched = time.monotonic()
        try:
            return signing.verify(token, self._keys, self._audience)
        except signing.Rejected as error:
            raise Unauthenticated("the caller context is not valid") from error
