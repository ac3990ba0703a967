"""Ports of the local stack."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.errors import LocalError
from deploy.local.ports import DEFAULTS, Ports, parse


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_wanted_port_that_is_taken_is_refused(busy: int) -> None:
    """The message names the port, what it is for, and how to mend it."""
    with pytest.raises(LocalError, match=rf"port {busy} \(rest\) is in use.*KUBEGEMS_LOCAL_PORTS"):
        Ports(wanted={"rest": busy}).take("rest")


def test_a_documented_port_that_is_taken_is_moved_and_remembered(busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another free port is taken, said, and taken again next time."""
    monkeypatch.setattr("deploy.local.ports.DEFAULTS", dict(DEFAULTS) | {"rest": busy})
    ports = Ports(tmp_path / "ports.json")
    moved = ports.take("rest")
    assert moved != busy
    assert ports.moved == [f"port {busy} (rest) is in use, taking {moved}"]
    assert Ports(tmp_path / "ports.json").take("rest") == moved


def test_wishes_are_checked() -> None:
    """Unknown names and impossible numbers are refused by name."""
    assert parse("rest=9443, grpc=9444") == {"rest": 9443, "grpc": 9444}
    for wrong in ("web=1", "rest=http", "rest=99999", "rest"):
        with pytest.raises(LocalError, match="KUBEGEMS_LOCAL_PORTS"):
            parse(wrong)
