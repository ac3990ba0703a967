"""The stack's folder: one starter at a time, secrets closed, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import build
from deploy.local.errors import LocalError
from deploy.local.layout import Layout
from deploy.local.options import Options


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A fresh folder."""
    found = Layout(tmp_path / "state")
    found.create()
    return found


def test_one_starter_at_a_time(layout: Layout) -> None:
    """A second starter is told who runs; the lock goes with its holder."""
    assert layout.running() is None
    layout.lock()
    with pytest.raises(LocalError, match=rf"runs already \(pid {os.getpid()}\): `make status`"):
        Layout(layout.root).lock()
    assert Layout(layout.root).running() == os.getpid()
    layout.unlock()
    assert Layout(layout.root).running() is None


def test_the_folder_is_closed_to_others(layout: Layout) -> None:
    """Nobody else can enter it, and what is written there is 0600."""
    assert layout.root.stat().st_mode & 0o077 == 0
    layout.write_json(layout.endpoints, {"rest": "x"})
    assert layout.endpoints.stat().st_mode & 0o077 == 0


def test_nothing_is_left_behind(layout: Layout) -> None:
    """Removing a stack takes its database along; a folder removed by hand loses its database at the next start."""
    data = layout.postgres_data
    data.mkdir()
    layout.remove()
    assert not data.exists()
    assert not layout.root.exists()
    layout.create()
    orphan = layout.postgres_data
    orphan.mkdir()
    subprocess.run(("rm", "-rf", str(layout.root)), check=True)
    layout.create()
    assert layout.postgres_data != orphan or not orphan.exists()
    assert not orphan.exists()
    layout.remove()


def _local(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((sys.executable, "-m", "deploy.local", *arguments), capture_output=True, text=True, timeout=60, check=False)


def test_verbs_without_a_stack(tmp_path: Path) -> None:
    """Status says that nothing runs, stop is content, clean removes."""
    state = ("--state", str(tmp_path / "none"))
    shown = _local("status", *state)
    assert (shown.returncode, "does not run" in shown.stdout) == (3, True)
    assert _local("stop", *state).returncode == 0
    (tmp_path / "none").mkdir()
    assert _local("clean", *state).returncode == 0
    assert not (tmp_path / "none").exists()


def test_a_missing_kubeconfig_is_told() -> None:
    """A wrong KUBEGEMS_LOCAL_KUBECONFIG is one line, before anything starts."""
    with pytest.raises(LocalError, match="there is no file /nowhere"):
        Options.read({"KUBEGEMS_LOCAL_KUBECONFIG": "/nowhere"})


def test_yes_and_no_are_read_and_nothing_else() -> None:
    """In the usual words; unset is the default; what is neither is one line with variable and value, before anything starts."""
    for text, wanted in (("", None), ("1", True), ("yes", True), ("On", True), ("TRUE", True), ("0", False), ("no", False), ("off", False)):
        assert Options.read({"JAEGER": text}).jaeger is (wanted or False)
        assert Options.read({"KUBEGEMS_LOCAL_CLUSTER": text}).clusters == (0 if wanted is False else 1)
    for name in ("JAEGER", "KUBEGEMS_LOCAL_CLUSTER"):
        with pytest.raises(LocalError, match=f"^{name}=maybe: say 1 or 0"):
            Options.read({name: "maybe"})


@pytest.mark.parametrize("wrong", ["nonsense", "tls://127.0.0.1", "tls://127.0.0.1:abc", "nats://127.0.0.1:4222"])
def test_a_nats_url_without_its_parts_is_told(wrong: str) -> None:
    """One line that says how it is written, before anything starts."""
    with pytest.raises(LocalError, match=r"KUBEGEMS_NATS_URL=.*: write tls://host:port"):
        Options.read({"KUBEGEMS_NATS_URL": wrong})
    assert Options.read({"KUBEGEMS_NATS_URL": "tls://nats.example:4222"}).nats_url == "tls://nats.example:4222"


async def test_the_build_key_covers_what_makes_a_program(tmp_path: Path) -> None:
    """Sources, go.sum, flags and the Go version change the key; a README does not."""
    go = await build.toolchain()
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text("1")
    program = build.Program("toy", tmp_path, ".")
    first = await build._key(program, go)
    (tmp_path / "README.md").write_text("hello")
    assert await build._key(program, go) == first
    assert await build._key(build.Program("toy", tmp_path, ".", ldflags="-w"), go) != first
    for name in ("go.sum", "main.go"):
        before = await build._key(program, go)
        (tmp_path / name).write_text("2")
        assert await build._key(program, go) != before


async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little disk for a build is said with both numbers and a way out."""
    monkeypatch.setattr(build, "_FREE_BYTES", 1 << 60)
    with pytest.raises(LocalError, match=r"too little disk: .*XDG_CACHE_HOME"):
        build._check_disk(tmp_path)
