"""Signing keys: made here, sealed in PostgreSQL, two valid at a time, shared by all replicas.

A purpose has keys of its own, so that what is signed for one can never pass for another. A key signs for ROTATION, then
the next one does; the last one stays good for verifying until that next one retires, which is longer than any token lives.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import uuid4

from libs import log
from libs.clock import Clock
from libs.crypt.box import Box
from libs.crypt.signing import SigningKey, jwk
from libs.faults import Fault
from libs.pg import Database, Record, Tx

ROTATION = timedelta(hours=24)  # longer than the longest token (12 h), so that two keys are enough
VALID = 2
CHANNEL = "identity_signing_keys"  # NOTIFY: some were taken away
_REFRESH = 30.0  # seconds between looks at what other replicas made
_AGAIN = 1.0  # seconds between looks caused by an unknown key id: strangers can cause them
_log = log.get("services.gateway.identity.keys")


class Purpose(enum.StrEnum):
    """What a key signs: users' tokens, caller contexts for inner services, or tunnel grants."""

    ACCESS = "access"
    CALLER = "caller"
    GRANT = "grant"


class Keyring:
    """The keys of one purpose."""

    def __init__(self, database: Database, box: Box, clock: Clock, purpose: Purpose) -> None:
        self.purpose = purpose
        self._database = database
        self._box = box
        self._clock = clock
        self._keys: list[SigningKey] = []
        self._public: Mapping[str, bytes] = {}
        self._looked = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def signing(self) -> SigningKey:
        """The key to sign with now. Call `refresh` once before."""
        return self._keys[0]

    @property
    def public(self) -> Mapping[str, bytes]:
        """The keys now valid, newest first: kid → raw 32 bytes."""
        return self._public

    async def knows(self, kid: str) -> bool:
        """Whether a key id is valid; looks again, at most once a second, when another replica may have made it."""
        if kid not in self._public:
            await self.look()
        return kid in self._public

    async def look(self) -> None:
        """Reads the keys unless that was done within the last second."""
        if self._clock.monotonic() - self._looked >= _AGAIN:
            await self.refresh()

    async def refresh(self) -> None:
        """Reads the keys, and makes the next one when it is time."""
        async with self._lock:
            self._looked = self._clock.monotonic()
            async with self._database.transaction() as tx:
                rows = await self._rotated(tx)
            self._keys = [SigningKey(row["kid"], self._box.open(row["sealed"], _context(row["kid"]))) for row in rows]
            self._public = {key.kid: key.public for key in self._keys}

    async def run(self) -> None:
        """Keeps the keys fresh until cancelled."""
        while True:
            await asyncio.sleep(_REFRESH)
            await self.changed()

    async def changed(self, _: str = "") -> None:
        """Reads them anew: the answer to a NOTIFY."""
        try:
            await self.refresh()
        except Fault as fault:  # the database is away: what is in memory stays good
            _log.warning("keys.not_refreshed", purpose=self.purpose.value, error=str(fault))

    async def _rotated(self, tx: Tx) -> list[Record]:
        rows = await tx.rows(_NEWEST, self.purpose.value, VALID)
        if rows and self._clock.now() - rows[0]["created"] < ROTATION:
            return rows
        # replicas take turns, and whoever comes second finds the key made
        await tx.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", f"identity signing key {self.purpose.value}")
        rows = await tx.rows(_NEWEST, self.purpose.value, VALID)
        if rows and self._clock.now() - rows[0]["created"] < ROTATION:
            return rows
        key = SigningKey.generate(uuid4().hex)
        await tx.execute(
            _INSERT, key.kid, self.purpose.value, key.public, self._box.seal(key.private, _context(key.kid)), self._clock.now()
        )
        await tx.execute(_RETIRE, self.purpose.value, VALID)
        _log.info("key.made", purpose=self.purpose.value, kid=key.kid)
        return await tx.rows(_NEWEST, self.purpose.value, VALID)


async def forget(tx: Tx, purposes: Sequence[Purpose]) -> int:
    """Takes all keys of some purposes away and tells every gateway, which makes new ones; how many there were."""
    gone = await tx.execute("DELETE FROM identity.signing_keys WHERE purpose = ANY($1)", [purpose.value for purpose in purposes])
    await tx.execute("SELECT pg_notify($1, '')", CHANNEL)
    return gone


def jwks(keyring: Keyring) -> dict[str, list[dict[str, str]]]:
    """The JSON Web Key Set of `/.well-known/jwks.json`."""
    return {"keys": [jwk(kid, public) for kid, public in keyring.public.items()]}


def _context(kid: str) -> str:
    return f"identity.signing_keys/{kid}"


_NEWEST = "SELECT kid, sealed, created FROM identity.signing_keys WHERE purpose = $1 ORDER BY created DESC, kid LIMIT $2"
_INSERT = "INSERT INTO identity.signing_keys (kid, purpose, public, sealed, created) VALUES ($1, $2, $3, $4, $5)"
_RETIRE = """
DELETE FROM identity.signing_keys WHERE purpose = $1 AND kid NOT IN
    (SELECT kid FROM identity.signing_keys WHERE purpose = $1 ORDER BY created DESC, kid LIMIT $2)
"""
