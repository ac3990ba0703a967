"""Sets the password of `admin` again: `python -m services.gateway.identity.reset --database-url-file F --password-file F`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from libs import audit
from libs.pg import Database
from services.gateway.identity import app
from services.gateway.identity.bootstrap import reset_admin
from services.gateway.identity.passwords import Passwords


async def _reset(dsn: str, password_file: Path) -> None:
    database = await Database.connect(dsn, application_name="kubegems reset admin", max_size=2)
    passwords = Passwords(workers=1)
    try:
        await audit.prepare(database)  # the gateway may never have run
        await app.prepare(database)
        await reset_admin(database, password_file, passwords=passwords, auditor=audit.Auditor(database, "reset"))
    finally:
        passwords.close()
        await database.close()


def main(argv: list[str] | None = None) -> None:
    """Runs it; the gateway may run meanwhile."""
    parser = argparse.ArgumentParser(description="Sets the password of the platform admin and ends its sessions.")
    parser.add_argument("--database-url-file", type=Path, required=True, help="file with the PostgreSQL URL")
    parser.add_argument("--password-file", type=Path, required=True, help="file (0600) with the new password, at least 10 characters")
    args = parser.parse_args(argv)
    try:
        asyncio.run(_reset(args.database_url_file.read_text().strip(), args.password_file))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write("the password of `admin` is set; its sessions have ended\n")


if __name__ == "__main__":
    main()
