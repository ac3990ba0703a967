"""Ports on the loopback: the documented ones, others when they are taken, the same ones next time."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from deploy.local.errors import LocalError

DEFAULTS: Mapping[str, int] = {
    "rest": 8443,
    "grpc": 8444,
    "internal": 8445,
    "enrolment": 8446,
    "tunnel": 8447,
    "gateway-metrics": 8448,
    "msgbus": 8451,
    "msgbus-metrics": 8452,
    "worker": 8455,
    "worker-metrics": 8456,
    "agent": 8461,
    "agent-metrics": 8462,
    "controller": 8465,
    "controller-metrics": 8466,
    "nats": 8470,
    "apiserver": 8480,
    "etcd": 8481,
    "etcd-peer": 8482,
    "scheduler": 8483,
    "controller-manager": 8484,
    "kwok": 8485,
    "jaeger-query": 8490,
    "otlp": 8491,
    "jaeger-query-grpc": 8492,
    "jaeger-metrics": 8493,
}
_FURTHER = 100  # between the documented ports of one cluster and the next
_LOW, _HIGH = 20_000, 32_000  # below the kernel's own range for outgoing connections


class Ports:
    """Gives each name its port.

    Args:
        file: where the choice is remembered; None remembers nothing.
        wanted: ports that must be these; one that is taken raises LocalError.
        documented: whether to prefer `DEFAULTS`; tests do not.
    """

    def __init__(self, file: Path | None = None, *, wanted: Mapping[str, int] | None = None, documented: bool = True) -> None:
        self._file = file
        self._wanted = dict(wanted or {})
        self._documented = documented
        self._remembered: dict[str, int] = _read(file)
        self.taken: dict[str, int] = {}
        self.moved: list[str] = []

    def take(self, name: str) -> int:
        """The port of a name, free now; the same one when asked again."""
        if name not in self.taken:
            self.taken[name] = self._choose(name)
            if self._file:
                self._file.write_text(json.dumps(self._remembered | self.taken, indent=1))
        return self.taken[name]

    def _choose(self, name: str) -> int:
        if name in self._wanted:
            if not is_free(self._wanted[name]):
                raise LocalError(
                    f"port {self._wanted[name]} ({name}) is in use: end what uses it, or choose another by KUBEGEMS_LOCAL_PORTS={name}=…"
                )
            return self._wanted[name]
        candidates = [self._remembered.get(name, 0), documented(name) if self._documented else 0]
        for port in candidates:
            if port and port not in self.taken.values() and is_free(port):
                return port
        port = self._other()
        if any(candidates):
            self.moved.append(f"port {next(filter(None, candidates))} ({name}) is in use, taking {port}")
        return port

    def _other(self) -> int:
        for _ in range(200):
            port = _LOW + secrets.randbelow(_HIGH - _LOW)
            if port not in self.taken.values() and is_free(port):
                return port
        raise LocalError("no free port on 127.0.0.1 between 20000 and 32000")


class Scoped:
    """The ports of one further cluster, by the names that the first one's have."""

    def __init__(self, ports: Ports, cluster: str) -> None:
        self._ports = ports
        self._cluster = cluster

    def take(self, name: str) -> int:
        """As `Ports.take`."""
        return self._ports.take(f"{self._cluster}/{name}")


class Taking(Protocol):
    """What gives a name its port."""

    def take(self, name: str) -> int:
        """The port."""
        ...


def documented(name: str) -> int:
    """The documented port of a name: `apiserver` 8480, `local-2/apiserver` 8580, and so on; 0 for an unknown name."""
    cluster, _, part = name.rpartition("/")
    number = cluster.rpartition("-")[2] or "1"
    return DEFAULTS[part] + _FURTHER * (int(number) - 1) if part in DEFAULTS and number.isdecimal() else 0


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def parse(text: str) -> dict[str, int]:
    """`rest=9443,grpc=9444` as a table; raises LocalError."""
    table: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = item.partition("=")
        if not documented(name) or not number.isdigit() or not 0 < int(number) < 1 << 16:
            raise LocalError(f"KUBEGEMS_LOCAL_PORTS: {item!r} is not name=port; names: {', '.join(DEFAULTS)}")
        table[name] = int(number)
    return table


def _read(file: Path | None) -> dict[str, int]:
    if file is None or not file.exists():
        return {}
    try:
        return {str(name): int(port) for name, port in json.loads(file.read_text()).items()}
    except (ValueError, AttributeError):
        return {}  # a broken memory is no memory
