"""The cache outside the repository: built programs, and PostgreSQL where its own user can read it."""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.errors import LocalError


def folder() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/kubegems`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "kubegems"


def is_root() -> bool:
    """Whether we could do anything, and so must not let PostgreSQL or typed commands do it."""
    return os.geteuid() == 0


def shared_folder() -> Path:
    """Like `folder`, but other users can go into it when we are root."""
    return Path("/var/cache/kubegems") if is_root() else folder()


def postgres_user() -> tuple[int, int] | None:
    """Who runs PostgreSQL: None is ourselves; when we are root, an account that owns nothing (it must have a name)."""
    if not is_root():
        return None
    for name in ("nobody", "daemon"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return account.pw_uid, account.pw_gid
    raise LocalError("PostgreSQL does not run as root and there is no account `nobody`: make one, or set KUBEGEMS_DATABASE_URL")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file: two starters do not build the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
