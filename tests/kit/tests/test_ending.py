"""A run that is told to end ends what it started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.kit.eventually import eventually

_ROOT = Path(__file__).parents[3]
_TEST = """
import asyncio, pathlib, pytest
@pytest.fixture(scope="session")
async def server():
    file = pathlib.Path("server")
    file.touch()
    yield
    file.unlink()
async def test_waits(server):
    await asyncio.sleep(60)
"""
_SETTINGS = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\nasyncio_default_test_loop_scope = session\n"


@pytest.mark.parametrize("interrupt", [signal.SIG_DFL, signal.SIG_IGN])
async def test_sigterm_cleans_up(tmp_path: Path, interrupt: signal.Handlers) -> None:
    """What fixtures made is gone after SIGTERM, as after Ctrl-C; also where Ctrl-C is ignored, as in a shell's background."""
    (tmp_path / "test_it.py").write_text(_TEST)
    (tmp_path / "pytest.ini").write_text(_SETTINGS)
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "conftest", "--rootdir", str(tmp_path))
    env = os.environ | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'gen'}"}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=env, stdout=asyncio.subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt)
    )
    made = tmp_path / "server"
    try:
        await eventually(made.exists, within=30)
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert not made.exists()
