"""Rights of streams: watched at the gateway, once per session; in force at once, worthless after five seconds of silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from kubegems.identity.v1 import access_service_pb2 as access_pb2
from libs import log
from libs.faults import Fault, Internal, Unavailable
from services.msgbus.domain import Environment, Grants, GrantsSilent, SessionEnded

SILENCE_SECONDS = 5.0  # decisions.md 7
_WATCH = access_pb2.WatchGrantsResponse
_log = log.get("services.msgbus")


class Source(Protocol):
    """Where grants come from."""

    def __call__(self, username: str, session: str) -> AsyncIterator[access_pb2.WatchGrantsResponse]:
        """AccessService.WatchGrants."""
        ...


class Listener(Protocol):
    """Who must know of a session's rights."""

    def changed(self, grants: Grants) -> None:
        """New rights, the first ones too."""
        ...

    def ended(self, fault: Fault) -> None:
        """There are no rights any more."""
        ...


@dataclass(slots=True)
class _Watch:
    listeners: set[Listener] = field(default_factory=set)
    grants: Grants | None = None
    task: asyncio.Task[None] | None = None


class Watches:
    """One watch for all streams of a session, for as long as there is one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._watches: dict[tuple[str, str], _Watch] = {}

    def __len__(self) -> int:
        return len(self._watches)

    @contextlib.contextmanager
    def joined(self, username: str, session: str, listener: Listener) -> Iterator[None]:
        """Tells the listener of the session's rights, now if they are known, for the length of the block."""
        key = (username, session)
        found = self._watches.get(key)
        if found is None:
            found = self._watches[key] = _Watch()
            found.task = asyncio.create_task(self._run(key, found), name=f"grants of {username}")
        found.listeners.add(listener)
        try:
            if found.grants is not None:
                listener.changed(found.grants)
            yield
        finally:
            found.listeners.discard(listener)
            if not found.listeners:
                self._drop(key, found)

    def _drop(self, key: tuple[str, str], found: _Watch) -> None:
        if self._watches.get(key) is found:
            del self._watches[key]
        if found.task is not None:
            found.task.cancel()

    async def _run(self, key: tuple[str, str], found: _Watch) -> None:
        def changed(grants: Grants) -> None:
            found.grants = grants
            for listener in list(found.listeners):
                listener.changed(grants)

        try:
            await watch(self._source, *key, changed)
        except Fault as error:
            fault: Fault = error
        except Exception as error:  # noqa: BLE001 -- whatever it is, nobody may go on with old rights
            _log.error("grants.failed", exc_info=error)
            fault = Internal("rights cannot be read")
        if self._watches.get(key) is found:
            del self._watches[key]
        for listener in list(found.listeners):
            listener.ended(fault)


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
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def from_proto(message: access_pb2.WatchGrantsResponse) -> Grants:
    """The grants that a message carries."""
    environments = [Environment(s.name, s.cluster, s.cluster_uid, s.namespace) for s in message.scopes]
    changed = message.change_time.ToNanoseconds() / 1e9 if message.HasField("change_time") else 0.0
    return Grants(
        message.everything, {e.place: e for e in environments}, frozenset(message.job_scopes), frozenset(message.audiences), changed
    )
