"""Watches: whose grants a stream tells, and what is new of them since it was told last."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from kubegems.identity.v1 import access_service_pb2 as pb
from libs.clock import new_id
from libs.faults import Exhausted, NotFound
from libs.rpc.call import Rights
from services.gateway.identity.api_key_domain import Limits, session_uid
from services.gateway.identity.directory import Directory, Places, Standing
from services.gateway.identity.grants import snapshot
from services.gateway.identity.narrowed import KeyRights

HEARTBEAT = 1.5  # seconds; the promise is 2
_SPACING = 0.1  # between two looks at all, however much changes
MOST = 50_000  # sessions of one watch; msgbus has no more streams
_AT_ONCE = 200  # looked at before others have their turn
_Reply = pb.WatchGrantsResponse
Key = tuple[str, str]  # user name, session


@dataclass(frozen=True, slots=True)
class Watched:
    """Whose grants are told: a user, cut down by an API key's limits if it came by one."""

    standing: Standing
    limits: Limits | None

    def rights(self, places: Places) -> Rights:
        """What it may do now."""
        return self.standing.rights if self.limits is None else KeyRights(self.standing.rights, self.limits, places)


@dataclass(slots=True, eq=False)
class _Told:
    watched: Watched | None = None
    places: Places | None = None
    last: pb.WatchGrantsResponse | None = None


@dataclass(eq=False, slots=True)
class Watch:
    """One stream's sessions.

    Attributes:
        owner: the service whose stream it is.
        woken: something may be new.
    """

    owner: str = ""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    _sessions: dict[Key, _Told] = field(default_factory=dict)
    _added: dict[Key, None] = field(default_factory=dict)

    def add(self, keys: Iterable[Key]) -> None:
        """Tells of some sessions from now on; Exhausted for too many."""
        for key in keys:
            if len(self._sessions) >= MOST and key not in self._sessions:
                raise Exhausted(f"a watch tells of {MOST} sessions at most")
            self._sessions[key] = _Told()
            self._added[key] = None
        self.woken.set()

    def remove(self, keys: Iterable[Key]) -> None:
        """Tells of them no more."""
        for key in keys:
            self._sessions.pop(key, None)
            self._added.pop(key, None)

    def told(self, key: Key) -> _Told | None:
        """What was told of a session; None when it is not watched."""
        return self._sessions.get(key)

    def added(self) -> list[Key]:
        """What was added since this was asked last."""
        found, self._added = list(self._added), {}
        return found

    def all(self) -> list[Key]:
        """All sessions."""
        return list(self._sessions)


class Watches:
    """The watches that are open."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._open: dict[str, Watch] = {}

    @contextlib.contextmanager
    def opened(self, owner: str) -> Iterator[tuple[str, Watch]]:
        """A watch and its name, for the length of the block."""
        name, watch = new_id().hex, Watch(owner)
        self._open[name] = watch
        try:
            yield name, watch
        finally:
            del self._open[name]

    def find(self, name: str, owner: str) -> Watch:
        """An open watch of a service; NotFound for another's."""
        watch = self._open.get(name)
        if watch is None or watch.owner != owner:
            raise NotFound("the watch is not open here", {"resource_name": name})
        return watch

    async def news(self, watch: Watch) -> AsyncGenerator[list[tuple[Key, pb.WatchGrantsResponse]], None]:
        """What is new, and an empty list at least every HEARTBEAT: that all has been looked at since, and is as told.

        While PostgreSQL is away nothing is said for certain: this fails with Unavailable.
        """
        loop = asyncio.get_running_loop()
        looked, version, beat = -math.inf, -1, loop.time() + HEARTBEAT
        self._directory.watchers.add(watch.woken)
        try:
            while True:
                watch.woken.clear()
                found = await self._look(watch, added) if (added := watch.added()) else []
                changed, now = version != self._directory.version, loop.time()
                due = now >= beat
                whole = due or (changed and now >= looked + _SPACING)
                if whole:
                    version, looked = self._directory.version, now
                    found += await self._look(watch, watch.all())
                if found or due:
                    if whole:  # news of added ones alone say nothing of the others
                        beat = now + HEARTBEAT
                    yield found
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(min(beat, looked + _SPACING) if changed else beat):
                        await watch.woken.wait()
        finally:
            self._directory.watchers.discard(watch.woken)

    async def _look(self, watch: Watch, keys: list[Key]) -> list[tuple[Key, pb.WatchGrantsResponse]]:
        """What differs from what was told of some sessions."""
        found = []
        await self._directory.learn([username for username, _ in keys], [uid for _, session in keys if (uid := _uid(session))])
        for number, key in enumerate(keys, 1):
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
            told = watch.told(key)
            watched = await self._watched(*key) if told is not None else None
            if told is None or watch.told(key) is not told:
                continue
            if watched is None:
                watch.remove([key])
                found.append((key, _Reply(kind=_Reply.ENDED)))
            elif (grants := self._differs(told, watched)) is not None:
                found.append((key, grants))
        return found

    def _differs(self, told: _Told, watched: Watched) -> pb.WatchGrantsResponse | None:
        """A session's grants, when they are not those told."""
        places = self._directory.places
        if watched == told.watched and places is told.places:
            return None
        told.watched, told.places = watched, places
        grants = snapshot(watched.standing, places, watched.rights(places))
        if grants == told.last:
            return None
        told.last = grants
        news = _Reply()
        news.CopyFrom(grants)
        news.change_time.GetCurrentTime()
        return news

    async def _watched(self, username: str, session: str) -> Watched | None:
        """The user's standing, and what narrows it, while the session or API key lives."""
        standing = await self._directory.standing_of(username)
        if standing is None or not session:
            return Watched(standing, None) if standing else None
        uid = _uid(session)
        live = await self._directory.session(uid) if uid else None
        return Watched(standing, live.limits) if live and live.user_uid == standing.account.uid else None


def _uid(session: str) -> UUID | None:
    try:
        return session_uid(session)
    except ValueError:
        return None
