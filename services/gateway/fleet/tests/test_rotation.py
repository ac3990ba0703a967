"""The steps from one CA to the next, on files."""

from __future__ import annotations

import contextlib
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from libs.clock import HeldClock
from libs.crypt import ca
from services.gateway.fleet import rotation
from services.gateway.fleet.rotation import Files, NotNow

CLOCK = HeldClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A hub's CA."""
    _, pair = ca.Authority.create("KubeGems hub CA", now=CLOCK.now())
    pair.write(tmp_path, "ca")
    return Files(tmp_path / "ca.crt", tmp_path / "ca.key")


def test_each_step_trusts_what_the_one_before_issued(files: Files) -> None:
    """Old alone, old with new, new with old, new alone; certificates of the CA in use are good before and after each step."""
    old = files.authority()
    issuers = [old.fingerprint]
    for step in (lambda: rotation.begin(files, CLOCK), lambda: rotation.switch(files), lambda: rotation.retire(files)):
        before = files.authority()
        service = before.issue("gateway", now=CLOCK.now(), lifetime=timedelta(days=1)).certificate
        (certificate,) = ca.certificates(service)
        step()
        assert ca.issued_by(certificate, before.bundle)
        assert ca.issued_by(certificate, files.bundle.read_text())
        issuers.append(files.authority().fingerprint)
        assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert issuers == [old.fingerprint] * 2 + [files.authority().fingerprint] * 2
    assert [ca.fingerprint(found) for found in ca.certificates(files.bundle.read_text())] == [issuers[-1]]
    assert not files.next_key.exists()


def test_steps_out_of_turn_change_nothing(files: Files) -> None:
    """Each says which comes first."""
    with pytest.raises(NotNow, match="begin"):
        rotation.switch(files)
    with pytest.raises(NotNow, match="begin"):
        rotation.retire(files)
    rotation.begin(files, CLOCK)
    before = {path.name: path.read_bytes() for path in files.key.parent.iterdir()}
    with pytest.raises(NotNow, match="under way"):
        rotation.begin(files, CLOCK)
    with pytest.raises(NotNow, match="switch"):
        rotation.retire(files)
    assert {path.name: path.read_bytes() for path in files.key.parent.iterdir()} == before


@pytest.mark.parametrize("step", ["begin", "switch", "retire"])
def test_a_step_that_was_cut_off_is_taken_up_again(files: Files, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off before each file that it replaces; the hub has a CA that issues and is trusted, and the steps go on to the end."""
    old = files.authority().fingerprint
    steps = {
        "begin": lambda: rotation.begin(files, CLOCK),
        "switch": lambda: rotation.switch(files),
        "retire": lambda: rotation.retire(files),
    }
    for name in ("begin", "switch", "retire"):
        if name == step:
            with monkeypatch.context() as patched:
                patched.setattr(rotation, "_write", _cut_off)
                with pytest.raises(InterruptedError):
                    steps[name]()
            files.authority()
            with contextlib.suppress(NotNow):  # a switch that was cut off has switched
                steps[name]()
        else:
            steps[name]()
    assert files.authority().fingerprint != old
    assert len(ca.certificates(files.bundle.read_text())) == 1
    assert not files.next_key.exists()


def _cut_off(*_: object) -> None:
    raise InterruptedError("planted")


def test_a_lost_ca_leaves_no_trust(files: Files) -> None:
    """Nothing of the old one is believed, also in the middle of a rotation."""
    old = files.authority()
    rotation.begin(files, CLOCK)
    rotation.replace(files, CLOCK)
    assert files.authority().fingerprint != old.fingerprint
    assert len(ca.certificates(files.bundle.read_text())) == 1
    assert not files.next_key.exists()


def test_a_bundle_needs_the_keys_own_certificate(files: Files) -> None:
    """A key without its certificate is told at the start, not at the first signature."""
    other, _ = ca.Authority.create("other", now=CLOCK.now())
    files.bundle.write_text(other.certificate)
    with pytest.raises(ValueError, match="none of the CA's certificates"):
        files.authority()
