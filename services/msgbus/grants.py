"""Rights of streams: one watch at the gateway for all sessions; in force at once, worthless after five seconds of silence.

A watch that breaks is opened anew. A session goes on when it is confirmed again within the five seconds, and only then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kubegems.identity.v1 import access_service_pb2 as access_pb2
from libs import log
from libs.faults import Fault, Unavailable
from services.msgbus.domain import Environment, Grants, GrantsSilent, SessionEnded, shared

SILENCE_SECONDS = 5.0  # decisions.md 7
QUIET = 0.6  # of that a silent watch may last: it says something every 2 s; the rest is for opening another
AGAIN_SECONDS = 0.3  # between two tries to open the watch
_LOOK_SECONDS = 0.25  # between two looks for sessions that nothing was heard of for too long
_AT_ONCE = 500  # sessions in one request
_WATCH = access_pb2.WatchGrantsResponse
_log = log.get("services.msgbus")
Key = tuple[str, str]  # user name, session


class Source(Protocol):
    """Where grants come from: AccessService."""

    def watch(self) -> AsyncIterator[access_pb2.WatchSessionsResponse]:
        """WatchSessions."""
        ...

    async def update(self, watch: str, add: Sequence[Key], remove: Sequence[Key]) -> None:
        """UpdateWatch."""
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
class _Session:
    """Whose rights are watched, for as long as somebody listens.

    Attributes:
        listeners: its streams.
        grants: its rights, once told.
        heard: when they were confirmed last; the open watch confirms those that it has told.
    """

    heard: float
    listeners: set[Listener] = field(default_factory=set)
    grants: Grants | None = None


class Watches:
    """The rights of all sessions that have streams here, by one watch, for as long as there are any."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sessions: dict[Key, _Session] = {}
        self._unconfirmed: dict[Key, _Session] = {}
        self._moved: dict[Key, bool] = {}  # what the open watch is to be told: True to add
        self._stirred = asyncio.Event()
        self._heard = 0.0
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    @contextlib.contextmanager
    def joined(self, username: str, session: str, listener: Listener) -> Iterator[None]:
        """Tells the listener of the session's rights, now if they are known, for the length of the block."""
        key = (username, session)
        found = self._sessions.get(key)
        if found is None:
            found = self._sessions[key] = self._unconfirmed[key] = _Session(asyncio.get_running_loop().time())
            self._tell(key, add=True)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="grants")
        found.listeners.add(listener)
        try:
            if found.grants is not None:
                listener.changed(found.grants)
            yield
        finally:
            found.listeners.discard(listener)
            if not found.listeners and self._forget(key, found):
                self._tell(key, add=False)

    def _tell(self, key: Key, *, add: bool) -> None:
        self._moved[key] = add
        self._stirred.set()

    def _forget(self, key: Key, found: _Session) -> bool:
        """Watches a session no more; whether it was watched. The last one takes the watch with it."""
        if self._sessions.get(key) is not found:
            return False
        del self._sessions[key]
        self._unconfirmed.pop(key, None)
        if not self._sessions and self._task is not None:
            self._task.cancel()
            self._task = None
        return True

    def _end(self, key: Key, fault: Fault) -> None:
        found = self._sessions.get(key)
        if found is not None and self._forget(key, found):
            for listener in list(found.listeners):
                listener.ended(fault)

    async def _run(self) -> None:
        """Keeps a watch open, and ends the sessions of which nothing was heard for too long."""
        looking = asyncio.create_task(self._look(), name="silent grants")
        try:
            while True:
                try:
                    await self._follow()
                except* (Fault, TimeoutError) as errors:
                    _log.warning("grants.interrupted", errors=[repr(error)[:200] for error in errors.exceptions])
                except* Exception as errors:  # noqa: BLE001 -- whatever it is, it is not confirmed rights
                    _log.error("grants.failed", exc_info=errors)
                if self._task is not asyncio.current_task():
                    return  # nobody needs it any more: its end met with a failure
                self._lost()
                await asyncio.sleep(AGAIN_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 -- jitter
        finally:
            looking.cancel()

    def _lost(self) -> None:
        """The watch is gone, and with it the word for all that it told."""
        for key, found in self._sessions.items():
            if key not in self._unconfirmed:
                found.heard = self._heard
                self._unconfirmed[key] = found

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, SILENCE_SECONDS / 4))
            oldest = asyncio.get_running_loop().time() - SILENCE_SECONDS
            for key in [key for key, found in self._unconfirmed.items() if found.heard < oldest]:
                self._end(key, GrantsSilent("rights cannot be confirmed now; subscribe again with the last resume token"))

    async def _follow(self) -> None:
        """One watch from its begin to its end; always raises."""
        stream = self._source.watch()
        try:
            async with asyncio.timeout(QUIET * SILENCE_SECONDS):
                name = (await anext(stream)).watch
            self._moved = dict.fromkeys(self._sessions, True)
            self._stirred.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(name), name="grants update")
                group.create_task(self._read(stream), name="grants read")
        except StopAsyncIteration as error:
            raise Unavailable("the watch of rights ended before it began") from error
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def _send(self, name: str) -> None:
        """Tells the gateway who came and who went, many at a time."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            while self._moved:
                keys = list(self._moved)[:_AT_ONCE]
                moves = {key: self._moved.pop(key) for key in keys}
                await self._source.update(name, [k for k in keys if moves[k]], [k for k in keys if not moves[k]])

    async def _read(self, stream: AsyncIterator[access_pb2.WatchSessionsResponse]) -> None:
        while True:
            async with asyncio.timeout(QUIET * SILENCE_SECONDS):
                message = await anext(stream, None)
            if message is None:
                raise Unavailable("the watch of rights has ended")
            self._heard = asyncio.get_running_loop().time()
            for one in message.sessions:
                self._told((one.of.username, one.of.session), one.grants)

    def _told(self, key: Key, message: access_pb2.WatchGrantsResponse) -> None:
        found = self._sessions.get(key)
        if message.kind == _WATCH.ENDED:
            self._end(key, SessionEnded("the session has ended; sign in again"))
        if found is None or message.kind != _WATCH.SNAPSHOT:
            return
        self._unconfirmed.pop(key, None)
        found.grants = from_proto(message)
        for listener in list(found.listeners):
            listener.changed(found.grants)


def from_proto(message: access_pb2.WatchGrantsResponse) -> Grants:
    """The grants that a message carries."""
    environments = [shared(Environment(s.name, s.cluster, s.cluster_uid, s.namespace)) for s in message.scopes]
    changed = message.change_time.ToNanoseconds() / 1e9 if message.HasField("change_time") else 0.0
    return Grants(
        message.everything,
        {e.place: e for e in environments},
        shared(frozenset(message.job_scopes)),
        shared(frozenset(message.audiences)),
        changed,
    )
