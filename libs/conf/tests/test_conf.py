"""Configuration is strict, and empty means what the field's type says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.conf import ConfigError, doc, read


@dataclass(frozen=True)
class _Config:
    """A service."""

    name: str = doc("A name.")
    port: int = doc("A port.", default=1)
    on: bool = doc("Whether.", default=False)
    ranges: tuple[str, ...] = doc("Ranges.", default=("a",))
    key_file: Path | None = doc("A key.", default=None)


def test_values_are_typed() -> None:
    """Text becomes what the field says; an empty text is an empty list, and nothing where nothing is allowed."""
    env = {
        "KUBEGEMS_TOY_NAME": "x",
        "KUBEGEMS_TOY_PORT": "7",
        "KUBEGEMS_TOY_ON": "true",
        "KUBEGEMS_TOY_RANGES": "",
        "KUBEGEMS_TOY_KEY_FILE": "",
    }
    assert read(_Config, "toy", env) == _Config(name="x", port=7, on=True, ranges=(), key_file=None)
    assert read(_Config, "toy", env | {"KUBEGEMS_TOY_RANGES": "b, c"}).ranges == ("b", "c")


def test_all_mistakes_are_told_at_once() -> None:
    """An unknown name, a wrong type and a missing value are in one message."""
    with pytest.raises(ConfigError) as told:
        read(_Config, "toy", {"KUBEGEMS_TOY_PORT": "http", "KUBEGEMS_TOY_COLOUR": "red"})
    assert [line.split()[0] for line in str(told.value).splitlines()] == [
        "KUBEGEMS_TOY_COLOUR:",
        "KUBEGEMS_TOY_NAME",
        "KUBEGEMS_TOY_PORT='http':",
    ]


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    """The YAML file fills what no variable says."""
    (tmp_path / "toy.yaml").write_text("name: filed\nport: 5\n")
    found = read(_Config, "toy", {"KUBEGEMS_TOY_CONFIG": str(tmp_path / "toy.yaml"), "KUBEGEMS_TOY_PORT": "6"})
    assert (found.name, found.port) == ("filed", 6)
