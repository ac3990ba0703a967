"""SQL behind the directory: who is signed in, who belongs where, and where environments are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.pg import Record, Tx
from services.gateway.identity.api_key_domain import Limits
from services.gateway.identity.domain import PlatformRole, UserState
from services.gateway.identity.principals import Place
from services.gateway.identity.rights import Membership


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session that has not ended, or an API key that has not been taken back, with what narrows it."""

    id: UUID
    user_uid: UUID
    expires: datetime
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What of a user decides its rights."""

    uid: UUID
    username: str
    platform_role: PlatformRole
    active: bool
    memberships: tuple[Membership, ...] = ()


async def live_sessions(tx: Tx, ids: Collection[UUID]) -> dict[UUID, LiveSession]:
    """Those of some sessions and API keys that have not ended."""
    rows = await tx.rows(_LIVE, list(ids))
    return {row["id"]: LiveSession(row["id"], row["user_uid"], row["expires"], _limits(row)) for row in rows}


def _limits(row: Record) -> Limits | None:
    if row["key"] is None:
        return None
    return Limits(row["key"], frozenset(row["permissions"]), row["read_only"], row["scope"])


async def accounts(tx: Tx, uids: Collection[UUID]) -> dict[UUID, Account]:
    """Some users, disabled ones too, with their memberships."""
    members: dict[UUID, list[Membership]] = defaultdict(list)
    for row in await tx.rows(_MEMBERSHIPS, list(uids)):
        membership = Membership.of(row["level"], row["role"], row["tenant"], row["project"], row["environment"], suspended=row["suspended"])
        members[row["user_uid"]].append(membership)
    rows = await tx.rows("SELECT uid, username, platform_role, state FROM identity.users WHERE uid = ANY($1::uuid[])", list(uids))
    return {
        row["uid"]: Account(
            uid=row["uid"],
            username=row["username"],
            platform_role=PlatformRole(row["platform_role"]),
            active=UserState(row["state"]) is UserState.ACTIVE,
            memberships=tuple(members[row["uid"]]),
        )
        for row in rows
    }


async def uid_of(tx: Tx, username: str) -> UUID | None:
    """The uid of a name; it never changes."""
    found: UUID | None = await tx.value("SELECT uid FROM identity.users WHERE username = $1", username)
    return found


async def uids_of(tx: Tx, usernames: Collection[str]) -> dict[str, UUID]:
    """The uids of those names that exist."""
    rows = await tx.rows("SELECT username, uid FROM identity.users WHERE username = ANY($1::text[])", list(usernames))
    return {row["username"]: row["uid"] for row in rows}


async def places_fingerprint(tx: Tx) -> str:
    """Differs when `places` or `clusters_by_tenant` do; one short row instead of all of them."""
    return str(await tx.value(_FINGERPRINT))


async def places(tx: Tx) -> tuple[Place, ...]:
    """Every environment and where it is."""
    rows = await tx.rows(_PLACES)
    return tuple(
        Place(
            row["tenant"], row["project"], row["environment"], str(row["cluster_uid"]), row["cluster"], row["namespace"],
            granted=row["granted"],
        )
        for row in rows
    )  # fmt: skip


async def clusters_by_tenant(tx: Tx) -> Mapping[str, tuple[str, ...]]:
    """Names of the clusters that each tenant may use: those it has a quota on."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in await tx.rows(_CLUSTERS):
        found[row["tenant"]].append(row["cluster"])
    return {tenant: tuple(clusters) for tenant, clusters in found.items()}


_LIVE = """
SELECT id, user_uid, expires, NULL::text AS key, NULL::text[] AS permissions, NULL::boolean AS read_only, NULL::text AS scope
  FROM identity.sessions WHERE id = ANY($1::uuid[]) AND ended IS NULL
UNION ALL
SELECT id, user_uid, expires, key, permissions, read_only, scope
  FROM identity.api_keys WHERE id = ANY($1::uuid[]) AND revoked IS NULL
"""
_MEMBERSHIPS = """
SELECT m.user_uid, m.level, m.role, m.tenant, m.project, m.environment, t.state = 'SUSPENDED' AS suspended
  FROM tenancy.members m JOIN tenancy.tenants t ON t.name = m.tenant
 WHERE m.user_uid = ANY($1::uuid[])
 ORDER BY m.tenant, m.project, m.environment
"""
_PLACES = """
SELECT e.tenant, e.project, e.name AS environment, e.cluster_uid, c.name AS cluster, e.namespace, g.granted IS NOT NULL AS granted
  FROM tenancy.environments e JOIN fleet.clusters c ON c.uid = e.cluster_uid
  LEFT JOIN fleet.granted g ON g.environment_uid = e.uid AND g.cluster_uid = e.cluster_uid
 ORDER BY e.tenant, e.project, e.name
"""
_CLUSTERS = """
SELECT q.tenant, c.name AS cluster FROM tenancy.quotas q JOIN fleet.clusters c ON c.uid = q.cluster_uid ORDER BY q.tenant, c.name
"""
_FINGERPRINT = """
SELECT concat_ws(':',
    (SELECT sum(hashtextextended(concat_ws('/', tenant, project, name, cluster_uid, namespace), 0)) FROM tenancy.environments),
    (SELECT sum(hashtextextended(concat_ws('/', tenant, cluster_uid), 1)) FROM tenancy.quotas),
    (SELECT sum(hashtextextended(concat_ws('/', uid, name), 2)) FROM fleet.clusters),
    (SELECT sum(hashtextextended(environment_uid::text, 3)) FROM fleet.granted))
"""
