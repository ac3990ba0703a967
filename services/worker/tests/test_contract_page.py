"""docs/jobs.md names a test for each promise."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDERS = ("libs/jobs/tests", "services/worker/tests", "tests/chaos/jobs", "tests/e2e")


def test_each_promise_of_the_page_names_a_test_that_is_there() -> None:
    """Every row of the page's promises ends in a test of ours, and no test of the engine is left unnamed by accident."""
    page = (ROOT / "docs/jobs.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and line.rstrip().endswith("` |")]
    named = [re.findall(r"`(test_[a-z_]+)`", row) for row in rows]
    assert len(rows) > 40
    there = {
        name
        for folder in FOLDERS
        for path in (ROOT / folder).glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_[a-z_]+)", path.read_text(), re.MULTILINE)
    }
    missing = {name for names in named for name in names} - there
    assert not missing, missing
    assert all(named), [row for row, names in zip(rows, named, strict=True) if not names]
