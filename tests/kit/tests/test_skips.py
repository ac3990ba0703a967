"""A skipped test is never silent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TEST = """
import pytest
def test_skipped():
    pytest.skip("no API server")
def test_runs():
    pass
"""


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_skips_are_counted_and_fail_ci(tmp_path: Path, ci: str, code: int) -> None:
    """One line counts them; with CI=true the run fails, which it does not for a run without skips."""
    (tmp_path / "test_it.py").write_text(_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    root = Path(__file__).parents[3]
    (tmp_path / "conftest.py").write_text(
        "from tests.kit.skips import Skips\ndef pytest_configure(config):\n    config.pluginmanager.register(Skips())\n"
    )
    env = os.environ | {"CI": ci, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, "test_it.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout
    assert "1 tests were skipped" in done.stdout
    done = subprocess.run(
        [*command, "test_it.py::test_runs"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
