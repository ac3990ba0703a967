"""The walk-through runner believes nothing that the README only claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.errors import LocalError
from deploy.local.walkthrough import matches, steps, walk

_README = """
# Title
## Walk-through
Sets a variable:
```sh
. .local/env
name=world
```
which stays:
```sh
echo "hello $name from $PLACE"; echo id-12345
```
```text
hello world from here
id-…
```
<!-- eventually 10s -->
```sh
echo x >> count; test $(wc -l < count) -ge 3 && echo "done"
```
```text
done
```
## Other
```sh
exit 9
```
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A README and an env file."""
    (tmp_path / "README.md").write_text(_README)
    (tmp_path / "env").write_text("export PLACE=here\n")
    return tmp_path / "README.md", tmp_path / "env"


async def test_the_steps_run_in_one_shell(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Variables stay, `…` matches, an eventual step is tried again, other sections are not run."""
    said: list[str] = []
    assert await walk(*files, said.append, cwd=tmp_path) == 3
    assert "hello world from here" in "\n".join(said)
    assert (tmp_path / "count").read_text().count("x") == 3


@pytest.mark.parametrize(("old", "new"), [("id-…", "no-…"), ("echo id-12345", "false"), ("name=world", "false"), ("-ge 3", "-ge 99999")])
async def test_a_rotten_readme_is_refused(files: tuple[Path, Path], tmp_path: Path, old: str, new: str) -> None:
    """Another output, a failing command and a step that never comes true are failures."""
    readme, env = files
    readme.write_text(_README.replace(old, new).replace("eventually 10s", "eventually 1s"))
    with pytest.raises(LocalError, match=r"step \d failed"):
        await walk(readme, env, lambda _: None, cwd=tmp_path)


def test_a_readme_without_steps_is_refused() -> None:
    """An empty walk-through proves nothing, so it is an error."""
    with pytest.raises(LocalError, match="no section"):
        steps("# Title\n## Walk-through\nsoon\n")


def test_matching() -> None:
    """`…` is anything in a line, alone on a line it is any lines; the rest is literal."""
    assert matches("a…c\n…\nz\n", "abc\n1\n2\nz\n")
    assert matches("a…c\n…\nz\n", "abc\nz")
    assert not matches("a…c\n", "abc\nd\n")
    assert not matches("a.c", "abc")
