"""Ports of the local stack."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.errors import LocalError
from deploy.local.options import Options
from deploy.local.ports import DEFAULTS, Ports, Scoped, parse


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
    assert parse("rest=9443, grpc=9444, local-2/agent=9445") == {"rest": 9443, "grpc": 9444, "local-2/agent": 9445}
    for wrong in ("web=1", "rest=http", "rest=99999", "rest", "local-2/web=1", "local-x/agent=1"):
        with pytest.raises(LocalError, match="KUBEGEMS_LOCAL_PORTS"):
            parse(wrong)


def test_each_further_cluster_has_ports_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred above those of the cluster before it; none is given twice."""
    monkeypatch.setattr("deploy.local.ports.is_free", lambda _: True)
    ports = Ports()
    taken = [Scoped(ports, "local-3").take("apiserver"), ports.take("apiserver"), Scoped(ports, "local-2").take("apiserver")]
    assert taken == [8680, 8480, 8580]


def test_how_many_clusters_is_checked() -> None:
    """One by default; nonsense is refused by name."""
    assert [Options.read({"CLUSTERS": text}).clusters for text in ("", "1", "3")] == [1, 1, 3]
    assert Options.read({"CLUSTERS": "2", "KUBEGEMS_LOCAL_CLUSTER": "0"}).clusters == 0
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(LocalError, match=f"CLUSTERS={wrong}"):
            Options.read({"CLUSTERS": wrong})
