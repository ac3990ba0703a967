"""The one watch of everybody's rights, with a gateway double that a test can break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from kubegems.identity.v1.access_service_pb2 import SessionGrants, WatchGrantsRequest, WatchGrantsResponse, WatchSessionsResponse
from libs.faults import Fault, NotFound, Unavailable
from services.msgbus import grants as rights
from services.msgbus.domain import Grants, GrantsSilent, SessionEnded
from services.msgbus.grants import Key, Watches

SNAPSHOT, ENDED = WatchGrantsResponse.SNAPSHOT, WatchGrantsResponse.ENDED


class Gateway:
    """Answers each added session with a snapshot, save those that it is silent about."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.away = False
        self.silent: set[str] = set()
        self.updates: list[tuple[list[Key], list[Key]]] = []
        self._news: asyncio.Queue[WatchSessionsResponse | Fault] = asyncio.Queue()

    async def watch(self) -> AsyncIterator[WatchSessionsResponse]:
        if self.away:
            raise Unavailable("away")
        self.opened += 1
        self._news = asyncio.Queue()
        try:
            yield WatchSessionsResponse(watch=f"w{self.opened}")
            while True:
                try:
                    async with asyncio.timeout(0.05):
                        news = await self._news.get()
                except TimeoutError:
                    news = WatchSessionsResponse()
                if isinstance(news, Fault):
                    raise news
                yield news
        finally:
            self.closed += 1

    async def update(self, watch: str, add: Sequence[Key], remove: Sequence[Key]) -> None:
        if watch != f"w{self.opened}":
            raise NotFound("another replica")
        self.updates.append((list(add), list(remove)))
        for key in add:
            if key[0] not in self.silent:
                self.say(key, SNAPSHOT)

    def say(self, key: Key, kind: WatchGrantsResponse.Kind.ValueType) -> None:
        of = WatchGrantsRequest(username=key[0], session=key[1])
        self._news.put_nowait(
            WatchSessionsResponse(sessions=[SessionGrants(of=of, grants=WatchGrantsResponse(kind=kind, everything=True))])
        )

    def fail(self) -> None:
        self._news.put_nowait(Unavailable("gone"))


class Stream:
    """A listener."""

    def __init__(self) -> None:
        self.grants: list[Grants] = []
        self.fault: Fault | None = None

    def changed(self, grants: Grants) -> None:
        self.grants.append(grants)

    def ended(self, fault: Fault) -> None:
        self.fault = fault


@contextmanager
def joined(watches: Watches, *names: str) -> Iterator[dict[str, Stream]]:
    """A stream of each user, in a session of its own."""
    with ExitStack() as stack:
        streams = {name: Stream() for name in names}
        for name, stream in streams.items():
            stack.enter_context(watches.joined(name, f"s-{name}", stream))
        yield streams


async def until(true: Callable[[], bool]) -> None:
    """Waits for it."""
    async with asyncio.timeout(8):
        while not true():
            await asyncio.sleep(0.01)


async def test_one_watch_serves_all_sessions() -> None:
    """However many there are; the end of one is told to its own streams alone; who goes is taken out; the last one closes it."""
    gateway = Gateway()
    watches = Watches(gateway)
    with joined(watches, "ann", "bob") as streams:
        await until(lambda: all(s.grants for s in streams.values()))
        with joined(watches, "eve") as more:
            await until(lambda: bool(more["eve"].grants))
        await until(lambda: gateway.updates[-1] == ([], [("eve", "s-eve")]))
        gateway.say(("ann", "s-ann"), ENDED)
        await until(lambda: isinstance(streams["ann"].fault, SessionEnded))
        assert streams["bob"].fault is None
        assert gateway.opened == 1
        assert len(watches) == 1
    await until(lambda: gateway.closed == 1)


async def test_a_broken_watch_is_opened_anew_and_the_streams_go_on() -> None:
    """A gateway that is back within the silence allowed costs nobody the stream."""
    gateway = Gateway()
    with joined(Watches(gateway), "ann", "bob") as streams:
        await until(lambda: all(s.grants for s in streams.values()))
        gateway.fail()
        await until(lambda: all(len(s.grants) == 2 for s in streams.values()))
        assert gateway.opened == 2
        assert not any(s.fault for s in streams.values())


async def test_who_is_not_confirmed_again_ends_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word of a new watch counts only for those that it has told, however lively it is."""
    monkeypatch.setattr(rights, "SILENCE_SECONDS", 0.6)
    gateway = Gateway()
    with joined(Watches(gateway), "ann", "bob") as streams:
        await until(lambda: all(s.grants for s in streams.values()))
        gateway.silent.add("bob")
        gateway.fail()
        await until(lambda: isinstance(streams["bob"].fault, GrantsSilent))
        assert streams["ann"].fault is None
        assert len(streams["ann"].grants) == 2


async def test_a_gateway_that_stays_away_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old rights are worth nothing after the silence allowed; once it is back, who joins is told again."""
    monkeypatch.setattr(rights, "SILENCE_SECONDS", 0.4)
    gateway = Gateway()
    watches = Watches(gateway)
    with joined(watches, "ann") as streams:
        await until(lambda: bool(streams["ann"].grants))
        gateway.away = True
        gateway.fail()
        await until(lambda: isinstance(streams["ann"].fault, GrantsSilent))
        assert len(watches) == 0
    gateway.away = False
    with joined(watches, "ann") as streams:
        await until(lambda: bool(streams["ann"].grants))
