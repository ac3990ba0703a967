"""Renewal: joins when there is no identity yet, and keeps the certificate fresh for ever."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

from libs import log
from libs.clock import Clock
from libs.crypt import ca
from libs.crypt.ca import BACKDATE
from libs.faults import Code, Fault
from services.agent.enrolment import Enrolment, read_token
from services.agent.identity import Identity, IdentityFiles, token_hash

_log = log.get(__name__)
_RENEWABLE = timedelta(days=90)  # how long after its end a certificate may still be renewed; decisions.md 14
_FIRST_DELAY = 1.0
_MAX_DELAY = 300.0
_MAX_DELAY_EXPIRED = 20.0  # without a certificate there is no tunnel
_ASK_AGAIN = 60.0  # between renewals because the hub hung up
_LONGEST_SLEEP = 600.0  # clocks jump and laptops sleep: look again at least that often
_FINAL = (Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED)


class Renewal:
    """Holds the current identity.

    Attributes:
        identity: the current one; `ensure` must have run.
        failures: failures since the last success.
        on_trust: called when a certificate came with other CAs; a tunnel with it shows the hub that it arrived.
    """

    def __init__(
        self, enrolment: Enrolment, files: IdentityFiles, *, clock: Clock, token_file: Path | None,
        first_delay: float = _FIRST_DELAY,
    ) -> None:  # fmt: skip
        self.failures = 0
        self.on_trust: Callable[[], None] = lambda: None
        self._enrolment = enrolment
        self._files = files
        self._clock = clock
        self._token_file = token_file
        self._first_delay = first_delay
        self._identity: Identity | None = None
        self._early = asyncio.Event()
        self._told = ""
        self._asked = -math.inf

    @property
    def identity(self) -> Identity:
        """The identity in use."""
        assert self._identity is not None, "ensure() comes first"
        return self._identity

    async def ensure(self) -> Identity:
        """A good identity: the kept one, renewed if it has expired, or a new one by a token that was not used before.

        Waits while the hub is away. Raises PinMismatch, ValueError when there is neither identity nor token, and the
        hub's Fault when it refuses for good.
        """
        found = self._files.load()
        if self._to_join(found):
            self._identity = await self._until_done(self._join)
        elif found is None:
            raise ValueError("the agent has not joined: give a join token (join_token_file)")
        elif not self._enrolment.belongs(found):
            raise ValueError("the state folder belongs to a hub with another CA: join with a new token (join_token_file)")
        elif self._clock.now() - found.not_after >= _RENEWABLE:
            raise ValueError("the certificate expired more than 90 days ago: join again with a new token (join_token_file)")
        else:
            self._identity = found
            if self._clock.now() >= found.not_after:
                self._identity = await self._until_done(self._renew)
        return self.identity

    def _to_join(self, found: Identity | None) -> bool:
        """Whether the configured token is one that this identity did not come from."""
        if self._token_file is None or not self._token_file.exists():
            return False
        return found is None or found.addresses.token_hash != token_hash(read_token(self._token_file))

    async def run(self) -> None:
        """Renews at two thirds of each certificate's life, and when the hub goes by other CAs; never ends by itself."""
        while True:
            wait = (self.due() - self._clock.now()).total_seconds()
            if wait > 0 and not self._early.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, _LONGEST_SLEEP)):
                        await self._early.wait()
                continue
            self._early.clear()
            try:
                before = self._trust()
                self._identity = await self._renew()
                changed = self._trust() != before
            except (Fault, ValueError, OSError) as error:
                self._told = ""  # whoever tells it again is heard
                await self._failed(error)
            else:
                self.failures = 0
                _log.info("certificate.renewed", not_after=self.identity.not_after.isoformat())
                if changed:
                    self.on_trust()
                await asyncio.sleep(self._first_delay)  # a certificate that is due at once must not become a busy loop

    def told(self, trust: str) -> None:
        """The hub names the CAs that it goes by: if they are not those known here, the next certificate comes with them, now."""
        if trust and trust not in (self._told, self._trust()):
            _log.info("certificate.other_cas", trust=trust)
            self._told = trust  # once for each, whatever comes with the renewal
            self._early.set()

    def refused(self) -> None:
        """The hub does not know our certificate, as after a restore: a renewal may help, and is tried now and then."""
        if self._clock.monotonic() - self._asked >= _ASK_AGAIN:
            self._asked = self._clock.monotonic()
            self._early.set()

    def due(self) -> datetime:
        """When the current certificate should be renewed: at two thirds of its life, not counting that it is backdated."""
        issued = min(self.identity.not_before + BACKDATE, self.identity.not_after)
        return issued + (self.identity.not_after - issued) * 2 / 3

    def _trust(self) -> str:
        return ca.bundle_hash(self.identity.ca_file.read_text())

    async def _join(self) -> Identity:
        assert self._token_file is not None
        return await self._enrolment.join(self._token_file)

    async def _renew(self) -> Identity:
        return await self._enrolment.renew(self.identity)

    async def _until_done(self, step: Callable[[], Awaitable[Identity]]) -> Identity:
        while True:
            try:
                found = await step()
            except Fault as fault:
                if fault.code in _FINAL:
                    raise
                await self._failed(fault)
            else:
                self.failures = 0
                return found

    async def _failed(self, error: Exception) -> None:
        self.failures += 1
        left = (self._identity.not_after - self._clock.now()).total_seconds() if self._identity is not None else 0.0
        longest = _MAX_DELAY if left > 0 else _MAX_DELAY_EXPIRED
        ceiling = min(longest, self._first_delay * 2 ** min(self.failures - 1, 16))
        pause = random.uniform(ceiling / 2, ceiling)  # noqa: S311 -- jitter
        if left > 0:
            pause = min(pause, left + random.uniform(0, _MAX_DELAY_EXPIRED))  # noqa: S311 -- agents expire together
        _log.warning("certificate.not_renewed", failures=self.failures, problem=str(error))
        await asyncio.sleep(pause)
