"""What a watch of many sessions tells, over a directory that changes without a word."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing
from typing import Any, cast
from uuid import UUID, uuid5

import pytest

from kubegems.identity.v1 import access_service_pb2 as pb
from libs.faults import Exhausted
from services.gateway.identity import watching
from services.gateway.identity.access_store import Account
from services.gateway.identity.directory import Directory, Places, Standing
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.watching import Watch, Watches

ENDED = pb.WatchGrantsResponse.ENDED


class Users:
    """A directory of users, those named `gone` away; it never says that something changed."""

    def __init__(self) -> None:
        self.places, self.version, self.watchers = Places(), 0, set[Any]()
        self.gone: set[str] = set()

    async def learn(self, usernames: Collection[str], sessions: Collection[UUID]) -> None:
        """All is known."""

    async def standing_of(self, username: str) -> Standing | None:
        """A user without any rights."""
        if username in self.gone:
            return None
        return Standing.of(Account(uuid5(UUID(int=0), username), username, PlatformRole.USER, active=True, memberships=()), {})


async def test_who_keeps_coming_puts_off_no_look_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message stands for all that were told before: they are looked at as often, whatever is told of new ones."""
    monkeypatch.setattr(watching, "HEARTBEAT", 0.2)
    users, watch = Users(), Watch()
    watch.add([("first", "")])
    async with aclosing(Watches(cast("Directory", users)).news(watch)) as news:
        assert [key for key, _ in await anext(news)] == [("first", "")]
        users.gone.add("first")
        for number in range(100_000):
            watch.add([(f"u{number % 500}", "")])
            told = dict(await anext(news))
            if ("first", "") in told:
                break
        assert told["first", ""].kind == ENDED


def test_a_watch_holds_a_bounded_number_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """More are refused; those that are there may be added again."""
    monkeypatch.setattr(watching, "MOST", 2)
    watch = Watch()
    watch.add([("a", ""), ("b", ""), ("a", "")])
    with pytest.raises(Exhausted):
        watch.add([("c", "")])
    assert (watch.added(), watch.added()) == ([("a", ""), ("b", "")], [])
