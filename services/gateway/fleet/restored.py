"""Tells a restored database that it was: `python -m services.gateway.fleet.restored --database-url-file F`; see docs/backup.md.

Agents may hold certificates that were issued after the backup: from then on those issued until now are good for a renewal.
What was taken back after the backup would be good again. So sessions end and join tokens are worth nothing; certificates and
API keys, on which unattended work depends, are listed, and those of the clusters that are named are revoked.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from libs.audit import Auditor
from libs.audit.entry import Entry
from libs.clock import SystemClock
from libs.faults import Fault
from libs.pg import Database, Tx
from services.gateway.fleet import certificates_store


@dataclass(frozen=True, slots=True)
class Found:
    """What a restored database holds.

    Attributes:
        sessions, tokens: how many sessions and join tokens were ended.
        revoked: clusters whose certificates were revoked.
        clusters: clusters whose certificates are good.
        api_keys: API keys that are good, by resource name.
    """

    sessions: int
    tokens: int
    revoked: Collection[str]
    clusters: Collection[str]
    api_keys: Collection[str]

    def __str__(self) -> str:
        """For people."""
        lines = [
            "certificates issued until now are good for a renewal; start the gateway",
            f"ended: {self.sessions} sessions, {self.tokens} join tokens",
            f"revoked, join them again with a new token: {_listed(self.revoked)}",
            "good again, even if taken back after the backup; look whether each should be:",
            f"  certificates of clusters: {_listed(self.clusters)}",
            f"  API keys: {_listed(self.api_keys)}",
            "  users, their passwords and members: as the backup has them",
        ]
        return "\n".join(lines)


async def mark(dsn: str, revoke: Collection[str] = (), *, revoke_all: bool = False) -> Found:
    """Marks the database as restored now, and ends what must not come back; ValueError when there is no cluster of a name."""
    database = await Database.connect(dsn, application_name="kubegems restored", max_size=2)
    now = SystemClock().now()
    try:
        async with database.transaction() as tx:
            await tx.execute("UPDATE fleet.hub SET restored = $1", now)
            found = await _ended(tx, now, revoke, revoke_all=revoke_all)
            resources = ["fleet.hub", *(f"clusters/{name}" for name in found.revoked)]
            entry = Entry(method="fleet/restored", class_="SENSITIVE", actor="services/gateway", resources=resources)
            await Auditor(database, "restored").record(tx, entry)
            return found
    finally:
        await database.close()


async def _ended(tx: Tx, now: datetime, revoke: Collection[str], *, revoke_all: bool) -> Found:
    clusters = {row["name"]: row["uid"] for row in await tx.rows("SELECT name, uid FROM fleet.clusters ORDER BY name")}
    if unknown := set(revoke) - set(clusters):
        raise ValueError(f"there is no cluster {_listed(sorted(unknown))} in this backup; nothing was changed")
    revoked = sorted(clusters if revoke_all else set(revoke))
    for name in revoked:
        await certificates_store.revoke(tx, clusters[name], now)
    return Found(
        sessions=await tx.execute("UPDATE identity.sessions SET ended = $1 WHERE ended IS NULL AND expires > $1", now),
        tokens=await tx.execute("UPDATE fleet.join_tokens SET revoked = $1 WHERE revoked IS NULL AND expires > $1", now),
        revoked=revoked,
        clusters=[row["name"] for row in await tx.rows(_CLUSTERS)],
        api_keys=[row["name"] for row in await tx.rows(_API_KEYS, now)],
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


_CLUSTERS = """
SELECT DISTINCT c.name FROM fleet.certificates t JOIN fleet.clusters c ON c.uid = t.cluster_uid WHERE t.revoked IS NULL ORDER BY c.name
"""
_API_KEYS = """
SELECT CASE WHEN u.account = '' THEN 'users/' || u.username
            ELSE 'tenants/' || u.owner_tenant || CASE WHEN u.owner_project = '' THEN '' ELSE '/projects/' || u.owner_project END
                 || '/serviceAccounts/' || u.account END || '/apiKeys/' || k.key AS name
  FROM identity.api_keys k JOIN identity.users u ON u.uid = k.user_uid WHERE k.revoked IS NULL AND k.expires > $1 ORDER BY 1
"""


def main(argv: list[str] | None = None) -> None:
    """Runs it, after the restore and before the gateway starts."""
    parser = argparse.ArgumentParser(description="Lets agents renew with later certificates, and ends what must not come back.")
    parser.add_argument("--database-url-file", type=Path, required=True, help="file with the PostgreSQL URL")
    parser.add_argument("--revoke", action="append", default=[], metavar="CLUSTER", help="all its certificates; it must join again")
    parser.add_argument("--revoke-all", action="store_true", help="the certificates of all clusters; each must join again")
    args = parser.parse_args(argv)
    try:
        found = asyncio.run(mark(args.database_url_file.read_text().strip(), args.revoke, revoke_all=args.revoke_all))
    except (Fault, ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
