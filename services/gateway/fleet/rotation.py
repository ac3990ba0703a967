"""Takes the hub from one CA to the next while agents stay connected: `python -m services.gateway.fleet.rotation STEP …`.

`begin` makes a new CA that is trusted beside the old one, `switch` lets the new one issue, `retire` takes the old one away,
`replace` puts a new CA in the place of one that was lost or stolen. `docs/security.md` tells what to do between the steps.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from libs.clock import Clock, SystemClock
from libs.crypt import ca
from libs.faults import Fault
from libs.pg import Database
from services.gateway.fleet import certificates_store


class NotNow(Exception):
    """The step does not come next, or some agents are not ready for it."""


@dataclass(frozen=True, slots=True)
class Files:
    """The CA on disk.

    Attributes:
        bundle: certificates of all CAs that are trusted, the issuing one first.
        key: the issuing CA's.
    """

    bundle: Path
    key: Path

    @property
    def next_key(self) -> Path:
        """Key of the CA that will issue next."""
        return self.key.with_name(self.key.name + ".next")

    def authority(self) -> ca.Authority:
        """The CA that issues."""
        return ca.Authority.load(self.bundle, self.key)


def begin(files: Files, clock: Clock) -> str:
    """Makes the next CA and trusts it too; raises NotNow in the middle of a rotation.

    A next key whose certificate nobody was told of is from a run that was cut off: it is made anew.
    """
    authority = files.authority()
    if len(ca.certificates(authority.bundle)) > 1:
        raise NotNow("a rotation is under way: `switch` or `retire` comes next")
    new, pair = _new(clock)
    ca.write_private(files.next_key, pair.key)
    _write(files.bundle, authority.certificate + new.certificate)
    return f"CA {new.fingerprint} is trusted beside {authority.fingerprint}, which still issues"


def switch(files: Files) -> str:
    """Lets the next CA issue; raises NotNow without one."""
    old = files.authority()
    if not files.next_key.exists() or len(ca.certificates(old.bundle)) == 1:
        raise NotNow("there is no next CA: `begin` comes first")
    new = ca.Authority.load(files.bundle, files.next_key)
    files.next_key.replace(files.key)
    _write(files.bundle, new.certificate + old.certificate)
    return f"CA {new.fingerprint} issues; {old.fingerprint} is still trusted"


def retire(files: Files) -> str:
    """Trusts only the CA that issues; raises NotNow when there is no other, or the other is still to issue."""
    authority = files.authority()
    if len(ca.certificates(authority.bundle)) == 1:
        raise NotNow("there is no other CA: `begin` comes first")
    if files.next_key.exists():
        raise NotNow("the new CA does not issue yet: `switch` comes first")
    _write(files.bundle, authority.certificate)
    return f"only CA {authority.fingerprint} is trusted"


def replace(files: Files, clock: Clock) -> str:
    """A new CA alone, with no trust in what was; every cluster must join again."""
    new, pair = _new(clock)
    files.next_key.unlink(missing_ok=True)
    ca.write_private(files.key, pair.key)
    _write(files.bundle, new.certificate)
    return f"CA {new.fingerprint} is the only one; every cluster must join again with a new token"


async def waiting(dsn: str, files: Files) -> list[str]:
    """Clusters whose agents have not yet got the CAs that are trusted now."""
    database = await Database.connect(dsn, application_name="kubegems rotation", max_size=2)
    try:
        async with database.transaction(readonly=True) as tx:
            return await certificates_store.behind(tx, ca.bundle_hash(files.bundle.read_text()))
    finally:
        await database.close()


def main(argv: list[str] | None = None) -> None:
    """Runs one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("status", "begin", "switch", "retire", "replace"))
    parser.add_argument("--ca-file", type=Path, required=True, help="the hub's CA certificates (PEM)")
    parser.add_argument("--ca-key-file", type=Path, required=True, help="key of the CA that issues")
    parser.add_argument("--database-url-file", type=Path, help="file with the PostgreSQL URL: who has got the CAs is looked up there")
    parser.add_argument("--force", action="store_true", help="go on although some agents are behind; they must join again")
    args = parser.parse_args(argv)
    try:
        sys.stdout.write(asyncio.run(_step(args, Files(args.ca_file, args.ca_key_file))) + "\n")
    except (Fault, NotNow, ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


async def _step(args: argparse.Namespace, files: Files) -> str:
    clock = SystemClock()
    if args.step in ("begin", "replace"):
        return begin(files, clock) if args.step == "begin" else replace(files, clock)
    if args.database_url_file is None:
        raise NotNow(f"`{args.step}` needs --database-url-file")
    behind = await waiting(args.database_url_file.read_text().strip(), files)
    if args.step == "status":
        trusted = [ca.fingerprint(found) for found in ca.certificates(files.bundle.read_text())]
        names = ", ".join(behind) or "none"
        return f"issues: {files.authority().fingerprint}\ntrusted: {', '.join(trusted)}\nclusters that have not heard of it: {names}"
    if behind and not args.force:
        raise NotNow(f"clusters that have not heard of the CAs that are trusted now: {', '.join(behind)}; wait for them, or --force")
    return switch(files) if args.step == "switch" else retire(files)


def _new(clock: Clock) -> tuple[ca.Authority, ca.Pair]:
    return ca.Authority.create(f"KubeGems hub CA {clock.now():%Y-%m-%d %H:%M}", now=clock.now())


def _write(path: Path, content: str) -> None:
    """Replaces a file that others may read."""
    ca.write(path, content, mode=path.stat().st_mode & 0o777 if path.exists() else 0o644)


if __name__ == "__main__":
    main()
