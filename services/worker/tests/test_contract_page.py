"""docs/jobs.md names a test for each promise."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDERS = ("libs/jobs/tests", "services/worker/tests", "services/gateway/fleet/tests", "tests/chaos/jobs", "tests/e2e")
ENGINE = ("libs/jobs/tests", "tests/chaos/jobs")


def _tests(*folders: str) -> set[str]:
    """Names of the tests in some folders."""
    return {
        name
        for folder in folders
        for path in (ROOT / folder).glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_[a-z_]+)", path.read_text(), re.MULTILINE)
    }


def _rows(page: str) -> list[str]:
    """The rows of all tables whose last column is `test`."""
    found, inside = [], False
    for line in page.splitlines():
        if line.startswith("|") and line.endswith("| test |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            found.append(line)
    return found


def test_each_promise_of_the_page_names_a_test_that_is_there() -> None:
    """Every row of promises names tests, all of them are there, and no test of the engine stands for no promise."""
    page = (ROOT / "docs/jobs.md").read_text()
    rows = _rows(page)
    assert len(rows) > 60
    named = [re.findall(r"`(test_[a-z_]+)`", row.split("|")[-2]) for row in rows]
    assert all(named), [row for row, names in zip(rows, named, strict=True) if not names]
    every = {name for names in named for name in names}
    assert not (missing := every - _tests(*FOLDERS)), missing
    assert not (unnamed := _tests(*ENGINE) - every), unnamed


def test_every_section_of_the_page_that_promises_has_its_table() -> None:
    """No promise hides in running text: each section but those that explain is a table with tests."""
    sections = re.split(r"^## ", (ROOT / "docs/jobs.md").read_text(), flags=re.MULTILINE)[1:]
    without = {section.split("\n", 1)[0] for section in sections if not _rows(section)}
    assert without == {"Writing a handler"}
