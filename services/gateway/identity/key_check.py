"""Believing API keys, and noting when they are used: one look at PostgreSQL for a new text, none for one seen before."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from datetime import datetime
from uuid import UUID

from prometheus_client import Counter

from libs import log
from libs.clock import Clock
from libs.faults import Fault
from libs.pg import Database
from services.gateway.identity import api_keys_store as store
from services.gateway.identity.api_key_domain import KeyText

FLUSH = 5.0  # seconds that a last use may come late
_REMEMBERED = 10_000
_MOST_WAITING = 20_000  # uses of different keys between two writes; the oldest are dropped
_log = log.get("services.gateway.identity.key_check")
_LOST = Counter("kubegems_api_key_uses_lost", "Last uses of API keys that could not be kept.")


class KeyCheck:
    """Says which key a text is. Whether that key still lives, the directory says: it hears of the end within a second."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._good: OrderedDict[bytes, UUID] = OrderedDict()
        self._uses: OrderedDict[UUID, tuple[datetime, str]] = OrderedDict()

    async def verify(self, text: str) -> UUID | None:
        """The id of the key; None for a wrong one.

        An unknown id and a wrong secret take the same road: one read, one comparison. Only right texts are remembered.
        """
        key = KeyText.parse(text)
        if key is None:
            return None
        digest = hashlib.sha256(text.encode()).digest()
        found = self._good.get(digest)
        if found is not None:
            self._good.move_to_end(digest)
            return found
        async with self._database.transaction(readonly=True) as tx:
            kept = await store.hash_of(tx, key.id)
        if not key.matches(kept):
            return None
        self._good[digest] = key.id
        if len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)
        return key.id

    def used(self, id_: UUID, address: str) -> None:
        """Notes a use now; written within FLUSH seconds."""
        self._uses[id_] = (self._clock.now(), address.replace("\0", "")[:64])
        self._uses.move_to_end(id_)
        if len(self._uses) > _MOST_WAITING:
            self._uses.popitem(last=False)
            _LOST.inc()

    async def run(self) -> None:
        """Writes uses down until cancelled."""
        while True:
            await asyncio.sleep(FLUSH)
            await self.flush()

    async def flush(self) -> None:
        """Writes down what is waiting; when PostgreSQL is away it waits on."""
        uses, self._uses = self._uses, OrderedDict()
        if not uses:
            return
        try:
            async with self._database.transaction() as tx:
                await store.keep_uses(tx, uses)
        except Fault as fault:
            _log.warning("api_keys.uses_not_kept", error=str(fault))
            self._uses = OrderedDict({**uses, **self._uses})
