"""The checks of `make check` refuse what they are there to refuse; each has a control that passes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy of the protos with buf's configuration."""
    for name in ("protos", ".cache/googleapis"):
        shutil.copytree(_ROOT / name, tmp_path / name)
    shutil.copy(_ROOT / "buf.yaml", tmp_path)
    return tmp_path


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} no longer holds {old!r}; choose another line"
    path.write_text(text.replace(old, new, 1))


def test_a_breaking_change_is_refused(protos: Path) -> None:
    """The protos as they are do not break the released API; a renumbered field and a removed RPC do."""
    command = ("buf", "breaking", "protos", "--against", "protos/released.binpb")
    assert _run(*command, cwd=protos).returncode == 0
    service = protos / "protos/kubegems/fleet/v1/join_token_service.proto"
    _edit(service, "string ca_hash = 3;", "string ca_hash = 33;")
    refused = _run(*command, cwd=protos)
    assert refused.returncode != 0
    assert "ca_hash" in refused.stdout


def test_lint_wants_comments_and_order(protos: Path) -> None:
    """A field without a comment and a file out of format are refused."""
    assert _run("buf", "lint", "protos", cwd=protos).returncode == 0
    service = protos / "protos/kubegems/fleet/v1/join_token_service.proto"
    _edit(service, "string ca_hash = 3;", "string ca_hash = 3;\n    string bare = 99;")
    refused = _run("buf", "lint", "protos", cwd=protos)
    assert "comment" in refused.stdout
    assert _run("buf", "format", "protos", "--diff", "--exit-code", cwd=protos).returncode != 0


def test_stale_generated_code_is_seen(tmp_path: Path) -> None:
    """`diff`, as `make check-protos` runs it, sees one changed and one missing file."""
    fresh, kept = tmp_path / "fresh", tmp_path / "kept"
    shutil.copytree(_ROOT / "gen", fresh, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(fresh, kept)
    command = ("diff", "-r", "--exclude=__pycache__", "--brief", str(fresh), str(kept))
    assert _run(*command, cwd=tmp_path).returncode == 0
    (kept / "kubegems/policy/v1/policy_pb2.pyi").write_text("stale")
    (kept / "kubegems/policy/v1/policy_pb2.py").unlink()
    refused = _run(*command, cwd=tmp_path)
    assert refused.returncode == 1
    assert len(refused.stdout.splitlines()) == 2
    recipe = (_ROOT / "Makefile").read_text()
    assert "diff -r --exclude=__pycache__ --brief .cache/gen gen" in recipe


@pytest.mark.parametrize(
    ("file", "text", "contract"),
    [
        ("libs/clock/bad.py", "import services.worker.domain", "services use libs and contracts"),
        ("services/agent/bad.py", "import libs.pg.database", "never touches PostgreSQL"),
        ("services/worker/bad.py", "import services.msgbus.domain", "a service never imports another service"),
    ],
)
def test_layers_are_kept(tmp_path: Path, file: str, text: str, contract: str) -> None:
    """import-linter names the contract that an import breaks."""
    for name in ("libs", "services"):
        shutil.copytree(_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    shutil.copytree(_ROOT / "gen/kubegems", tmp_path / "kubegems", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).write_text(f'"""Breaks a contract."""\n\n{text}\n')
    refused = _run("lint-imports", "--no-cache", cwd=tmp_path)
    assert refused.returncode != 0, refused.stdout
    broken = [line for line in refused.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), refused.stdout
