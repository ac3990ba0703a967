"""docs/push.md names tests that exist, each in the file that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/push.md").read_text()
_NAMED = re.compile(r"(\w+): ((?:`test_\w+`(?:, )?)+)")


def rows(page: str) -> list[list[str]]:
    """The cells of every row, without heads."""
    found = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [cells for cells in found if cells[1] not in ("test", "where", "what happened")]


def files() -> dict[str, Path]:
    """What each short name stands for."""
    found = {}
    for names, where in (cells for cells in rows(PAGE) if re.match(r"[a-z, ]+$", cells[0])):
        paths = re.findall(r"`([\w/{}.]+\.py)`", where)
        for i, name in enumerate(names.split(", ")):
            found[name] = ROOT / paths[min(i, len(paths) - 1)].format(name)
    return found


def sentences(page: str) -> list[list[str]]:
    """Promises, with what keeps them."""
    return [cells for cells in rows(page) if cells[0][0].isupper()]


def defined(path: Path) -> set[str]:
    """Tests of a file."""
    return set(re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))


def test_every_short_name_is_a_file_of_tests() -> None:
    """All of them are there, and every one is used."""
    assert len(files()) >= 15
    assert [name for name, path in files().items() if not path.is_file() or not defined(path)] == []
    assert [name for name in files() if not re.search(rf"\b{name}(: `test_|;| \||$|\))", PAGE, re.MULTILINE)] == []


def problems(page: str) -> list[str]:
    """What is wrong with the promises of a page."""
    found = []
    for sentence, kept_by in sentences(page):
        named = _NAMED.findall(kept_by)
        rest = set(_NAMED.sub("", kept_by).replace(";", " ").split())
        if not (named or rest) or not rest <= files().keys():
            found.append(f"{sentence}: kept by {kept_by!r}")
    for name, tests in _NAMED.findall(page):
        found += [f"{name}: no {test}" for test in re.findall(r"test_\w+", tests) if test not in defined(files()[name])]
    return found


def test_every_sentence_names_a_test_that_is_there() -> None:
    """A renamed or moved test would leave a promise without proof, and so would a sentence that names none."""
    assert len(sentences(PAGE)) >= 35
    assert problems(PAGE) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("`test_broker_away_for_a_while`", "`test_broker_away_for_ever`"),
        ("hub: `test_changes_of_one_object", "view: `test_changes_of_one_object"),
        ("hub: `test_a_frozen_subscriber_gets_resync_and_costs_nobody_else_anything`", "surely"),
    ],
)
def test_a_test_that_is_not_there_is_found(right: str, wrong: str) -> None:
    """The controls: a name that is nowhere, one that is in another file, and none at all."""
    assert PAGE.count(right) == 1
    assert len(problems(PAGE.replace(right, wrong))) == 1
