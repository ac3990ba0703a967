"""The starter's supervision: crashed parts come back, nothing outlives its owner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.local.errors import LocalError
from deploy.local.part import Part
from deploy.local.process import Command, Process
from deploy.local.supervise import Supervisor

Eventually = Callable[..., Awaitable[Any]]
_FOREVER = "import time; time.sleep(600)"


def _part(folder: Path, program: str, *, name: str = "toy", ready: Callable[[], Awaitable[None]] | None = None, within: float = 20) -> Part:
    async def at_once() -> None:
        await asyncio.sleep(0.1)

    return Part(name, lambda: Command((sys.executable, "-c", program), folder / f"{name}.log"), ready or at_once, within=within)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def test_a_killed_part_comes_back(tmp_path: Path, eventually: Eventually) -> None:
    """After `kill -9` the part runs again under a new pid, and one line says so."""
    said: list[str] = []
    supervisor = Supervisor(said.append)
    await supervisor.start(_part(tmp_path, _FOREVER))
    kept = supervisor.kept["toy"]
    first = kept.pid
    assert first
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: kept.state == "ready" and kept.pid not in (None, first), within=5)
    assert kept.crashes == 1
    assert any("toy was killed by signal 9" in line and "toy.log" in line for line in said)
    await eventually(lambda: any("toy is back" in line for line in said), within=2)
    second = kept.pid
    assert second
    await supervisor.stop()
    assert not _alive(second)


async def test_a_part_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    """A part that ends before it serves raises its last words and its log file, and leaves no process."""
    supervisor = Supervisor(lambda _: None)

    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LocalError, match=r"toy ended with code 7 while starting: no such colour; see .*toy\.log"):
        await supervisor.start(_part(tmp_path, "import sys; sys.stderr.write('no such colour'); sys.exit(7)", ready=never))
    with pytest.raises(LocalError, match="mute was not ready within 0 s"):
        await supervisor.start(_part(tmp_path, _FOREVER, name="mute", ready=never, within=0.3))
    mute = supervisor.kept["mute"].process
    assert mute
    assert not _alive(mute.pid)
    await supervisor.stop()


async def test_one_of_two_that_does_not_start_is_still_one_line(tmp_path: Path) -> None:
    """The failure of one part beside another is the same plain error, and the other is stopped with the rest."""
    supervisor = Supervisor(lambda _: None)

    async def never() -> None:
        await asyncio.Event().wait()

    good, bad = _part(tmp_path, _FOREVER, name="good"), _part(tmp_path, "raise SystemExit(4)", name="bad", ready=never)
    with pytest.raises(LocalError, match="bad ended with code 4"):
        await supervisor.start(good, bad)
    await supervisor.stop()
    process = supervisor.kept.get("good")
    assert process is None or process.pid is None


async def test_stop_ends_what_ignores_it(tmp_path: Path, eventually: Eventually) -> None:
    """A program deaf to SIGTERM, and the child it made, are ended once patience is over."""
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); time.sleep(600)"
    )
    command = Command((sys.executable, "-c", program), tmp_path / "deaf.log", patience=0.5)
    process = await Process.start(command)
    await eventually(lambda: (tmp_path / "deaf.log").read_text().endswith("\n"), within=10)
    child = int((tmp_path / "deaf.log").read_text())
    assert _alive(child)
    await process.stop()
    await eventually(lambda: not _alive(process.pid) and not _alive(child), within=5)


async def test_children_end_with_their_parent(tmp_path: Path, eventually: Eventually) -> None:
    """When the starter is ended by SIGKILL, the kernel ends its children."""
    program = f"""
import asyncio, sys
from pathlib import Path
from deploy.local.process import Command, Process
async def main():
    process = await Process.start(Command((sys.executable, "-c", "{_FOREVER}"), Path({str(tmp_path)!r}) / "child.log"))
    print(process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert starter.stdout
    child = int(await asyncio.wait_for(starter.stdout.readline(), 20))
    assert _alive(child)
    starter.kill()
    await starter.wait()
    await eventually(lambda: not _alive(child), within=5)


async def test_a_part_that_keeps_crashing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless crashes end the stack with the part's name and log instead of going on for ever."""
    monkeypatch.setattr("deploy.local.supervise._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("deploy.local.supervise._LONGEST_PAUSE", 0.002)
    monkeypatch.setattr("deploy.local.supervise._GIVE_UP", 3)
    supervisor = Supervisor(lambda _: None)
    await supervisor.start(_part(tmp_path, "import time; time.sleep(0.3); raise SystemExit(3)"))
    error = await asyncio.wait_for(asyncio.shield(supervisor.failed), 30)
    assert "toy crashed 3 times in a row" in str(error)
    await supervisor.stop()
