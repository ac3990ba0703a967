"""Proving a password: delayed after failures, the same work and the same words whether or not the user is there."""

from __future__ import annotations

import re

from prometheus_client import Counter

from libs.clock import Clock
from libs.pg import Database
from services.gateway.identity import store
from services.gateway.identity.domain import SignInDelayed, UserState, WrongCredentials, source_network
from services.gateway.identity.passwords import PasswordPoolFull, Passwords
from services.gateway.identity.store import Credentials

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}")
_NO_NAME = "-"  # nobody's; what cannot be a user name is counted here
_COUNTED = Counter("kubegems_sign_ins", "Passwords given, by what came of it.", ["outcome"])


class SignIn:
    """Checks passwords. Its own transactions: a failure must be counted although the call's own work is rolled back."""

    def __init__(self, database: Database, passwords: Passwords, clock: Clock) -> None:
        self._database = database
        self._passwords = passwords
        self._clock = clock

    async def prove(self, username: str, password: str, address: str) -> Credentials:
        """The user whose password this is.

        Raises:
            SignInDelayed: too many failures; `retry_after` says how long to wait.
            PasswordPoolFull: too many sign-ins at once.
            WrongCredentials: no such user, a wrong password, or the user is disabled.
        """
        username = username.lower() if _NAME.fullmatch(username.lower()) else _NO_NAME
        network = source_network(address)
        async with self._database.transaction() as tx:
            wait = await store.attempt(tx, username, network, self._clock.now())
            found = await store.credentials(tx, username)
        if wait:
            _COUNTED.labels("delayed").inc()
            raise SignInDelayed(
                f"too many failed sign-ins for this name from your network; wait {wait.total_seconds():.0f} s", retry_after=wait
            )
        try:
            right = await self._passwords.verify(found.password_hash if found else None, password)
        except PasswordPoolFull:
            _COUNTED.labels("busy").inc()
            async with self._database.transaction() as tx:
                await store.forgive(tx, username, network, all_of_them=False)
            raise
        if not right or found is None or found.user.state is UserState.DISABLED:
            _COUNTED.labels("wrong").inc()
            raise WrongCredentials
        _COUNTED.labels("right").inc()
        async with self._database.transaction() as tx:
            await store.forgive(tx, username, network, all_of_them=True)
        return found
