"""Who calls: nobody, an API key, or a session whose access token is renewed before it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from libs import log
from libs.faults import Fault, Unauthenticated, Unavailable

EARLY = 60.0  # seconds before its end at which an access token is renewed; a token lives for ten minutes
_AGAIN = 5.0  # seconds between attempts to renew while the hub is away
_log = log.get("libs.client")
Refresh = Callable[[str], Awaitable[Any]]


class Credential(Protocol):
    """What goes into `authorization`."""

    async def bearer(self) -> str:
        """The token to send now; empty for none. Raises Unauthenticated when the session is over."""
        ...

    async def renewed(self, refused: str) -> bool:
        """Whether there is another token than the one that was refused."""
        ...


class Anonymous:
    """Nobody."""

    async def bearer(self) -> str:
        """None."""
        return ""

    async def renewed(self, refused: str) -> bool:  # noqa: ARG002 -- the protocol's
        """No."""
        return False


class ApiKey:
    """An API key; it needs no renewing and cannot be renewed."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "ApiKey()"

    async def bearer(self) -> str:
        """The key."""
        return self._key

    async def renewed(self, refused: str) -> bool:  # noqa: ARG002 -- the protocol's
        """No."""
        return False


class Session:
    """A signed-in user.

    Args:
        signed_in: the answer of CreateSession.
        refresh: trades a refresh token for new tokens; each is good once, so one renewal runs at a time.
    """

    def __init__(self, signed_in: Any, refresh: Refresh) -> None:
        self._refresh = refresh
        self._renewing: asyncio.Task[None] | None = None
        self._take(signed_in)

    def __repr__(self) -> str:
        return f"Session({self.name})"

    def _take(self, answer: Any) -> None:
        self.name = str(answer.session.name)
        self._access, self._token = str(answer.access_token), str(answer.refresh_token)
        self._ends = answer.expire_time.ToDatetime(UTC)

    @property
    def left(self) -> float:
        """Seconds that the access token is still good."""
        return float((self._ends - datetime.now(UTC)).total_seconds())

    async def bearer(self) -> str:
        """The access token, renewed when it ends soon; the old one while the hub is away and it still lasts."""
        if self.left < EARLY:
            try:
                await self._renew(self._access)
            except Unavailable:
                if self.left <= 0:
                    raise
        return self._access

    async def renewed(self, refused: str) -> bool:
        """Renews a token that the hub refused although it has not ended."""
        try:
            await self._renew(refused)
        except Unauthenticated:
            return False
        return True

    async def _renew(self, old: str) -> None:
        """One renewal for all who need it. It goes on when they give up: a refresh token that was sent is used up."""
        if self._access != old:
            return
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._fetch(), name="client token renewal")
            self._renewing.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._renewing)

    async def _fetch(self) -> None:
        self._take(await self._refresh(self._token))

    async def keep(self) -> None:
        """Renews for as long as the session lives, also while nobody calls: an open stream needs its session. Until cancelled."""
        while True:
            await asyncio.sleep(max(_AGAIN, self.left - EARLY))
            try:
                await self.bearer()
            except Unauthenticated:
                _log.info("client.session_over", session=self.name)
                return
            except Fault as fault:
                _log.info("client.not_renewed", cause=fault.reason)
