"""docs/push.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_sentence_names_a_test_that_is_there() -> None:
    """A renamed test would leave a promise without proof."""
    page = (ROOT / "docs/push.md").read_text()
    folders = ("services/msgbus/tests", "tests/integration/push", "tests/chaos/push", "tests/e2e", "services/agent/tests")
    code = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).glob("test_*.py"))
    named = set(re.findall(r"`(test_[a-z_]+)`", page))
    assert len(named) >= 25
    assert sorted(name for name in named if f"def {name}(" not in code) == []
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| sentence", "| ---"))]
    assert all(re.search(r"test_|chaos|wash: all|faults|: the same", row) for row in rows)
