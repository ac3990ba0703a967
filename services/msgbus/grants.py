"""The rights of one stream: watched at the gateway, in force at once, worthless after five seconds of silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from kubegems.identity.v1 import access_service_pb2 as access_pb2
from libs.faults import Fault, Unavailable
from services.msgbus.domain import Environment, Grants, GrantsSilent, SessionEnded

SILENCE_SECONDS = 5.0  # decisions.md 7
_WATCH = access_pb2.WatchGrantsResponse


class Source(Protocol):
    """Where grants come from."""

    def __call__(self, username: str, session: str) -> AsyncIterator[access_pb2.WatchGrantsResponse]:
        """AccessService.WatchGrants."""
        ...


async def watch(source: Source, username: str, session: str, changed: Callable[[Grants], None]) -> None:
    """Calls `changed` with each new set of grants; never returns.

    Raises:
        SessionEnded: the session or user has ended.
        GrantsSilent: nothing was heard for too long, or the gateway is away.
    """
    stream = source(username, session)
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await anext(stream)
            if message.kind == _WATCH.ENDED:
                raise SessionEnded("the session has ended; sign in again")
            if message.kind == _WATCH.SNAPSHOT:
                changed(from_proto(message))
    except (TimeoutError, StopAsyncIteration, Unavailable) as error:
        raise GrantsSilent("rights cannot be confirmed now; subscribe again with the last resume token") from error
    except Fault:
        raise
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def from_proto(message: access_pb2.WatchGrantsResponse) -> Grants:
    """The grants that a message carries."""
    environments = [Environment(s.name, s.cluster, s.cluster_uid, s.namespace) for s in message.scopes]
    return Grants(message.everything, {e.place: e for e in environments}, frozenset(message.job_scopes))
