"""A real agent, run by the command that the API returns, and what it is connected to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PATIENCE = 25.0  # seconds from SIGTERM to SIGKILL
_ESTABLISHED, _SYN_SENT, _LISTEN = "01", "02", "0A"


@dataclass(frozen=True, slots=True)
class Agent:
    """The processes of one command.

    Attributes:
        group: process group.
        log: its log file.
    """

    group: int
    log: Path

    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text(errors="replace")

    def dialled(self) -> set[int]:
        """Ports that it has connections to, or is asking for one, but for its own listeners."""
        own: set[int] = set()
        remote: set[int] = set()
        for pid in _members(self.group):
            for state, local, far in _sockets(pid):
                if state == _LISTEN:
                    own.add(local)
                elif state in (_ESTABLISHED, _SYN_SENT):
                    remote.add(far)
                    if local in own:
                        remote.discard(far)
        return remote - own


@contextlib.asynccontextmanager
async def joining(command: str, home: Path, kubeconfig: Path, ports: tuple[int, int], **env: str) -> AsyncIterator[Agent]:
    """Runs a join command as its reader would, in a home of its own; `ports` are the agent's gRPC and metrics ports."""
    home.mkdir(exist_ok=True)
    log = home / "agent.log"
    given = {
        "HOME": str(home),
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "KUBECONFIG": str(kubeconfig),
        "KUBEGEMS_AGENT_GRPC_PORT": str(ports[0]),
        "KUBEGEMS_AGENT_METRICS_PORT": str(ports[1]),
    }
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", command), cwd=ROOT, env=given | env, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield Agent(process.pid, log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _PATIENCE)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def _members(group: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group:
                found.append(int(stat.parent.name))
    return found


def _sockets(pid: int) -> list[tuple[str, int, int]]:
    """State, local port and remote port of a process's TCP connections, listeners first."""
    inodes: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # it has ended
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in inodes:
                    found.append((fields[3], int(fields[1].rpartition(":")[2], 16), int(fields[2].rpartition(":")[2], 16)))
    return sorted(found, key=lambda one: one[0] != _LISTEN)
