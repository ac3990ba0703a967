"""Makes signing keys anew, as after a theft: `python -m services.gateway.identity.rotate --database-url-file F`.

What the old keys signed is worth nothing from then on: access and kubeconfig tokens, and the caller contexts between hub
services. Sessions live on; clients get a new token with their refresh token. Gateways hear of it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from libs.audit import Auditor
from libs.audit.entry import Entry
from libs.pg import Database
from services.gateway.identity import keys
from services.gateway.identity.keys import Purpose


async def rotate(dsn: str, purposes: list[Purpose]) -> int:
    """Takes all keys of some purposes away; how many there were."""
    database = await Database.connect(dsn, application_name="kubegems rotate", max_size=2)
    try:
        async with database.transaction() as tx:
            gone = await keys.forget(tx, purposes)
            entry = Entry(method="identity/rotateKeys", class_="SENSITIVE", actor="services/gateway", resources=[p.value for p in purposes])
            await Auditor(database, "rotate").record(tx, entry)
        return gone
    finally:
        await database.close()


def main(argv: list[str] | None = None) -> None:
    """Runs it; the gateways may run meanwhile."""
    parser = argparse.ArgumentParser(description="Makes signing keys anew; what the old ones signed is worth nothing from then on.")
    parser.add_argument("--database-url-file", type=Path, required=True, help="file with the PostgreSQL URL")
    parser.add_argument("--purpose", action="append", choices=[p.value for p in Purpose], help="what for; all when none is given")
    args = parser.parse_args(argv)
    try:
        purposes = [Purpose(name) for name in args.purpose or [p.value for p in Purpose]]
        gone = asyncio.run(rotate(args.database_url_file.read_text().strip(), purposes))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{gone} keys are worth nothing now; new ones are made by the gateway\n")


if __name__ == "__main__":
    main()
