"""One child process: its log file, its group, its end. It dies with us, whatever happens to us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.errors import LocalError

_CHILD = Path(__file__).with_name("child.py")
_LOG_BYTES = 16 << 20  # a larger log is put aside (one old one is kept) at the next start


def base_env() -> dict[str, str]:
    """The little that every program gets: no secret of the caller's shell goes further."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": os.environ.get("HOME", "/")}


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Attributes:
        argv: the program and its arguments.
        log: file that gets its standard output and error, appended.
        env: its whole environment.
        user: (uid, gid) to run as; needs root.
        stop: the signal that asks it to end.
        death: the signal it gets when we are gone.
        patience: seconds from `stop` to SIGKILL.
        whole_group: `stop` goes to the program's children too, for one that only waits for its child.
    """

    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=base_env)
    user: tuple[int, int] | None = None
    stop: signal.Signals = signal.SIGTERM
    death: signal.Signals = signal.SIGKILL
    patience: float = 25.0
    whole_group: bool = False


class Process:
    """A started command."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process) -> None:
        self.command = command
        self._process = process

    @classmethod
    async def start(cls, command: Command) -> Process:
        """Starts it in a session of its own."""
        user = f"{command.user[0]}:{command.user[1]}" if command.user else "-"
        with open_log(command.log) as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), str(int(command.death)), user, *command.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=dict(command.env),
                start_new_session=True,
            )
        return cls(command, process)

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code (negative: the signal that ended it), or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Waits for its end, sweeps what it left in its group, and tells its exit code."""
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return code

    async def stop(self) -> None:
        """Asks it to end, and ends it when it does not."""
        if self.code is None:
            if self.command.whole_group:
                self._signal_group(self.command.stop)
            else:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(self.command.stop)
        try:
            async with asyncio.timeout(self.command.patience):
                await self._process.wait()
        except TimeoutError:
            self._signal_group(signal.SIGKILL)
        await self.wait()

    def kill(self) -> None:
        """Ends it and its group at once."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


async def run(command: Command, *, within: float) -> None:
    """Runs a command to its end; raises LocalError with the log's last line when it fails or takes too long."""
    process = await Process.start(command)
    try:
        async with asyncio.timeout(within):
            code = await process.wait()
    except TimeoutError:
        raise LocalError(f"{command.argv[0]} did not end within {within:.0f} s; see {command.log}") from None
    finally:
        if process.code is None:
            process.kill()
    if code:
        raise LocalError(f"{Path(command.argv[0]).name} failed ({code}): {last_line(command.log)}; see {command.log}")


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[int]:
    """A descriptor that appends to a log only we can read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def last_line(log: Path, limit: int = 300) -> str:
    """The last line of a log that says something."""
    try:
        lines = log.read_text(errors="replace")[-20_000:].splitlines()
    except OSError:
        return "no log"
    return next((line.strip()[:limit] for line in reversed(lines) if line.strip()), "nothing was logged")
