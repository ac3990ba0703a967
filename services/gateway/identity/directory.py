"""What is in use of sessions, users and places, kept in memory and never more than a second behind.

Triggers in PostgreSQL tell of changes (channels `identity` and `grants`); in case a message is lost, everything kept is
read again each second, in one go for all. When that has not worked for TRUST seconds, memory is not believed: each
question goes to PostgreSQL, and is Unavailable when that is away.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from libs import log
from libs.clock import Clock
from libs.faults import Fault
from libs.pg import Database, Tx
from services.gateway.identity import access_store as store
from services.gateway.identity.access_store import Account, LiveSession
from services.gateway.identity.narrowed import touches
from services.gateway.identity.principals import Place, Principal, principal, scopes_with_environments
from services.gateway.identity.recent import Recent
from services.gateway.identity.rights import MemberRights

POLL = 1.0
TRUST = 2.5  # seconds
_REFRESH = 5.0  # seconds that a poll may take
_NAMES = 20_000
_log = log.get("services.gateway.identity.directory")


@dataclass(frozen=True, slots=True)
class Standing:
    """A user as it stands now. Two are equal when they give the same rights."""

    account: Account
    clusters: Mapping[str, tuple[str, ...]]
    rights: MemberRights = field(compare=False)

    @classmethod
    def of(cls, account: Account, clusters: Mapping[str, tuple[str, ...]]) -> Standing:
        """The standing of an account; `clusters` by tenant."""
        tenants = {m.tenant for m in account.memberships if not m.suspended}
        own = {tenant: clusters[tenant] for tenant in sorted(tenants) if tenant in clusters}
        return cls(account, own, MemberRights(account.username, account.platform_role, account.memberships, own))


@dataclass(frozen=True, slots=True)
class Places:
    """Where all environments are, arranged for the questions asked."""

    fingerprint: str = "never read"
    all: tuple[Place, ...] = ()
    clusters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_tenant: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    scopes_by_cluster: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, fingerprint: str, places: tuple[Place, ...], clusters: Mapping[str, tuple[str, ...]]) -> Places:
        """Arranges them."""
        by_tenant: dict[str, list[Place]] = {}
        by_cluster: dict[str, list[Place]] = {}
        for place in places:
            by_tenant.setdefault(place.tenant, []).append(place)
            by_cluster.setdefault(place.cluster_uid, []).append(place)
        scopes = {uid: scopes_with_environments(found) for uid, found in by_cluster.items()}
        return cls(fingerprint, places, clusters, {tenant: tuple(found) for tenant, found in by_tenant.items()}, scopes)

    def clusters_of(self, tenant: str) -> tuple[str, ...]:
        """Names of the clusters that a tenant may use."""
        return self.clusters.get(tenant, ())


class Directory:
    """Answers who is signed in and what they may do. `start` it, then keep `run` running.

    Attributes:
        places: where all environments are.
        version: rises when something changed.
        watchers: are set then.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._sessions: Recent[LiveSession] = Recent(clock)
        self._standings: Recent[Standing] = Recent(clock)
        self._uids: OrderedDict[str, UUID] = OrderedDict()
        self._drops = 0
        self._read = float("-inf")
        self._wake = asyncio.Event()
        self.places = Places()
        self.version = 0
        self.watchers: set[asyncio.Event] = set()

    async def start(self) -> None:
        """Listens for changes and reads for the first time."""
        await self._database.listen("identity", self._heard_identity)
        await self._database.listen("grants", self._heard_grants)
        await self.refresh()

    async def run(self) -> None:
        """Reads again each second, and at once when told of a change, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(POLL):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                async with asyncio.timeout(_REFRESH):
                    await self.refresh()
            except (Fault, TimeoutError) as error:
                _log.warning("directory.not_read", error=repr(error))

    @property
    def fresh(self) -> bool:
        """Whether memory may be believed."""
        return self._clock.monotonic() - self._read < TRUST

    @property
    def read_at(self) -> float:
        """When (monotonic) that was read which questions asked now are answered from; memory is not, while it is not believed."""
        return self._read if self.fresh else self._clock.monotonic()

    async def session(self, id_: UUID) -> LiveSession | None:
        """A session that has neither ended nor expired, or None; Unavailable when that cannot be known."""
        found = self._sessions.get(id_) if self.fresh else None
        if found is None or found.expires <= self._clock.now():
            drops = self._drops
            async with self._database.transaction(readonly=True) as tx:
                found = (await store.live_sessions(tx, [id_])).get(id_)
            if found and drops == self._drops:
                self._sessions.put(id_, found)
        return found if found and found.expires > self._clock.now() else None

    async def standing(self, uid: UUID) -> Standing | None:
        """A user that may sign in, or None; Unavailable when that cannot be known."""
        found = self._standings.get(uid) if self.fresh else None
        if found is None:
            drops = self._drops
            async with self._database.transaction(readonly=True) as tx:
                account = (await store.accounts(tx, [uid])).get(uid)
                places = self.places if self.fresh else await self._read_places(tx)
            if account is None:
                return None
            found = Standing.of(account, places.clusters)
            if drops == self._drops:
                self._standings.put(uid, found)
        return found if found.account.active else None

    async def standing_of(self, username: str) -> Standing | None:
        """As `standing`, by name."""
        uid = self._uids.get(username)
        if uid is None:
            async with self._database.transaction(readonly=True) as tx:
                uid = await store.uid_of(tx, username)
            if uid is None:
                return None
            self._name(username, uid)
        return await self.standing(uid)

    async def learn(self, usernames: Collection[str], sessions: Collection[UUID]) -> None:
        """Reads in one go what is not known of many that are about to be asked for; Unavailable when PostgreSQL is away."""
        if not self.fresh:
            await self.refresh()
        names = [name for name in usernames if name not in self._uids]
        ids = [id_ for id_ in sessions if self._sessions.get(id_) is None]
        uids = [uid for name in usernames if (uid := self._uids.get(name)) is not None and self._standings.get(uid) is None]
        if not (names or ids or uids):
            return
        drops = self._drops
        async with self._database.transaction(readonly=True) as tx:
            named = await store.uids_of(tx, names) if names else {}
            live = await store.live_sessions(tx, ids) if ids else {}
            accounts = await store.accounts(tx, [*uids, *named.values()])
        for name, uid in named.items():
            self._name(name, uid)
        if drops == self._drops:
            for id_, session in live.items():
                self._sessions.put(id_, session)
            for uid, account in accounts.items():
                self._standings.put(uid, Standing.of(account, self.places.clusters))

    def _name(self, username: str, uid: UUID) -> None:
        self._uids[username] = uid
        if len(self._uids) > _NAMES:
            self._uids.popitem(last=False)

    async def principal(self, standing: Standing, cluster_uid: str, within: str = "") -> Principal:
        """As whom a user acts in a cluster; by memberships that touch `within`, if given."""
        if not self.fresh:
            await self.refresh()
        account = standing.account
        here = self.places.scopes_by_cluster.get(cluster_uid, frozenset())
        memberships = [m for m in account.memberships if touches(within, m.scope)]
        return principal(account.username, account.uid, account.platform_role, memberships, here)

    async def refresh(self) -> None:
        """Reads all that is kept again."""
        started = self._clock.monotonic()
        sessions, users = self._sessions.keys(), self._standings.keys()
        async with self._database.transaction(readonly=True) as tx:
            places = await self._read_places(tx)
            live = await store.live_sessions(tx, sessions) if sessions else {}
            accounts = await store.accounts(tx, users) if users else {}
        changed = places is not self.places
        self.places = places
        standings = {uid: Standing.of(account, places.clusters) for uid, account in accounts.items()}
        changed |= self._sessions.replace(sessions, live, before=started)
        changed |= self._standings.replace(users, standings, before=started)
        self._read = started
        if changed:
            self._announce()

    async def _read_places(self, tx: Tx) -> Places:
        fingerprint = await store.places_fingerprint(tx)
        if fingerprint == self.places.fingerprint:
            return self.places
        return Places.of(fingerprint, await store.places(tx), await store.clusters_by_tenant(tx))

    def _heard_identity(self, payload: str) -> None:
        kind, _, id_ = payload.partition("/")
        if id_:
            (self._sessions if kind == "session" else self._standings).drop(UUID(id_))
        self._look()

    def _heard_grants(self, payload: str) -> None:
        if payload not in ("", "*"):
            self._standings.drop(UUID(payload))
        self._look()

    def _look(self) -> None:
        """Something changed: what is being read now is not kept, all is read again, watchers look at once."""
        self._drops += 1
        self._wake.set()
        self._announce()

    def _announce(self) -> None:
        self.version += 1
        for watcher in self.watchers:
            watcher.set()
