"""What may stand in the repository: sizes, hosts, paths."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FILE_LINES, _FUNCTION_LINES = 400, 40
_TEST_FILE_LINES, _TEST_FUNCTION_LINES = 450, 70  # a scenario reads best in one piece
# Put together from halves, so that this list is no hit of its own.
_HOSTS = tuple(
    first + second
    for first, second in (
        ("pypi", ".org"),
        ("files.python", "hosted.org"),
        ("proxy.go", "lang.org"),
        ("sum.go", "lang.org"),
        ("registry.npm", "js.org"),
        ("crates", ".io"),
        ("repo1.ma", "ven.org"),
        ("deb.deb", "ian.org"),
        ("docker", ".io/"),
        ("registry.k8s", ".io"),
        ("ghcr", ".io"),
        ("quay", ".io"),
    )
)
_PLACES = tuple(first + second for first, second in (("/work", "/main"), ("/work", "/shared"), ("/tm", "p/kg/"), ("/tm", "p/kgbuild")))


def _tracked() -> list[Path]:
    names = subprocess.run(("git", "ls-files", "-z"), cwd=_ROOT, capture_output=True, text=True, check=True, timeout=20).stdout
    return [_ROOT / name for name in names.split("\0") if name and (_ROOT / name).is_file()]


def _ours(suffix: str) -> Iterator[Path]:
    for path in _tracked():
        if path.suffix == suffix and "gen" not in path.relative_to(_ROOT).parts[:1]:
            yield path


def long_functions(source: str, limit: int = _FUNCTION_LINES) -> list[tuple[str, int]]:
    """Functions longer than a limit, their docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            text = node.body[0] if documented else None
            lines = (node.end_lineno or 0) - node.lineno + 1 - ((text.end_lineno or 0) - text.lineno + 1 if text else 0)
            if lines > limit:
                found.append((node.name, lines))
    return found


def test_files_and_functions_stay_small() -> None:
    """No file has over 400 lines, no function over 40; of tests, 450 and 70."""
    wrong = []
    for path in _ours(".py"):
        text = path.read_text()
        test = "tests" in path.relative_to(_ROOT).parts
        if text.count("\n") > (_TEST_FILE_LINES if test else _FILE_LINES):
            wrong.append(f"{path.relative_to(_ROOT)}: {text.count(chr(10))} lines")
        wrong += [
            f"{path.relative_to(_ROOT)}: {name} has {lines} lines"
            for name, lines in long_functions(text, _TEST_FUNCTION_LINES if test else _FUNCTION_LINES)
        ]
    assert not wrong, "\n".join(wrong)


def test_a_long_function_is_seen() -> None:
    """The measure counts what it should."""
    assert long_functions("def f():\n" + "    x = 1\n" * 45) == [("f", 46)]
    assert not long_functions("def f():\n    '''" + "doc\n" * 60 + "'''\n    return 1\n")


def test_no_registry_and_no_machine_is_named() -> None:
    """No tracked text names a package registry's host or a folder of somebody's machine."""
    hits = []
    pattern = re.compile("|".join(re.escape(word) for word in (*_HOSTS, *_PLACES)))
    for path in _tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(_ROOT)}: {found.group()}" for found in pattern.finditer(text)]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize("area", ["libs", "services"])
def test_every_package_makes_its_promise(area: str) -> None:
    """Each lib and service says in its docstring what it does."""
    for package in sorted((_ROOT / area).iterdir()):
        if (package / "__init__.py").exists():
            text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
            assert len(text) > 40, f"{package.relative_to(_ROOT)}/__init__.py: says nothing"


def test_every_test_says_what_it_proves() -> None:
    """Each test function has a docstring."""
    silent = []
    for path in _ours(".py"):
        if path.name.startswith("test_"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                    and node.name.startswith("test_")
                    and not ast.get_docstring(node)
                ):
                    silent.append(f"{path.relative_to(_ROOT)}: {node.name}")
    assert not silent, "\n".join(silent)
