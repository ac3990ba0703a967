"""Where a local stack keeps what: one folder, `.local` for people, another for each stack of the tests."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.local import cache
from deploy.local.errors import LocalError
from libs.crypt import ca

_SYSTEM = Path("/var/lib/kubegems")  # PostgreSQL's data when we are root: its user cannot go into root's folders


class Layout:
    """The paths of one stack.

    Args:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.logs = self.root / "log"
        self.certificates = self.root / "certificates"
        self.secrets = self.root / "secrets"
        self.cluster = self.root / "cluster"
        self.endpoints = self.root / "endpoints.json"
        self.env = self.root / "env"
        self.status = self.root / "status.json"
        self.ports = self.root / "ports.json"
        self.admin_password = self.root / "admin.password"
        self._lock: int | None = None

    def create(self) -> None:
        """Makes the folders; only their owner can read them."""
        for folder in (self.root, self.logs, self.secrets, self.cluster):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)
        identity = self.root / "id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(6))
        if cache.is_root():
            _prune()

    @property
    def postgres_data(self) -> Path:
        """PostgreSQL's data folder; outside the stack's folder when we are root."""
        if not cache.is_root():
            return self.root / "postgres"
        folder = _SYSTEM / (self.root / "id").read_text().strip()
        folder.mkdir(parents=True, exist_ok=True)
        for path in (_SYSTEM, folder):
            path.chmod(0o711)
        (folder / "owner").write_text(str(self.root))
        return folder / "postgres"

    def lock(self) -> None:
        """Makes us the one starter of this stack until we end; raises LocalError when there is one already."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LocalError(f"KubeGems runs already (pid {self.running()}): `make status` shows it, `make stop` ends it") from None
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._lock = descriptor

    def unlock(self) -> None:
        """Lets another starter in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def running(self) -> int | None:
        """The starter's pid, or None when none runs."""
        path = self.root / "lock"
        if not path.exists():
            return None
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
        return None

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Replaces a JSON file at once; only its owner can read it."""
        ca.write_private(path, json.dumps(content, indent=1) + "\n")

    def withdraw(self) -> None:
        """Removes what says that the stack runs."""
        for path in (self.endpoints, self.env, self.status):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the stack's data."""
        if cache.is_root() and (self.root / "id").exists():
            shutil.rmtree(_SYSTEM / (self.root / "id").read_text().strip(), ignore_errors=True)
        shutil.rmtree(self.root, ignore_errors=True)


def _prune() -> None:
    """Removes databases whose stack's folder was removed by hand."""
    for owner in _SYSTEM.glob("*/owner"):
        identity = Path(owner.read_text()) / "id"
        if not identity.exists() or identity.read_text().strip() != owner.parent.name:
            shutil.rmtree(owner.parent, ignore_errors=True)
