"""Tells a restored database that it was: `python -m services.gateway.fleet.restored --database-url-file F`; see docs/backup.md.

Agents may hold certificates that were issued after the backup. From then on those issued until now are good for a renewal.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from libs.audit import Auditor
from libs.audit.entry import Entry
from libs.clock import SystemClock
from libs.faults import Fault
from libs.pg import Database


async def mark(dsn: str) -> None:
    """Marks the database as restored now."""
    database = await Database.connect(dsn, application_name="kubegems restored", max_size=2)
    try:
        async with database.transaction() as tx:
            await tx.execute("UPDATE fleet.hub SET restored = $1", SystemClock().now())
            entry = Entry(method="fleet/restored", class_="SENSITIVE", actor="services/gateway", resources=["fleet.hub"])
            await Auditor(database, "restored").record(tx, entry)
    finally:
        await database.close()


def main(argv: list[str] | None = None) -> None:
    """Runs it, after the restore and before the gateway starts."""
    parser = argparse.ArgumentParser(description="Lets agents renew with certificates that were issued after the backup.")
    parser.add_argument("--database-url-file", type=Path, required=True, help="file with the PostgreSQL URL")
    args = parser.parse_args(argv)
    try:
        asyncio.run(mark(args.database_url_file.read_text().strip()))
    except (Fault, ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write("certificates issued until now are good for a renewal; start the gateway\n")


if __name__ == "__main__":
    main()
