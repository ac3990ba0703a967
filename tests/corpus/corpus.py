"""The recorded requests: one JSON line each, one file per release of a client, in the order in which it sent them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "recorded"
NAMESPACE = "corpus-0"  # as recorded; a name of the same length may replace it, in protobuf bodies too
_KEPT_HEADERS = ("accept", "accept-encoding", "content-type", "user-agent", "kubectl-command", "x-stream-protocol-version")
_UPGRADE_HEADERS = ("connection", "upgrade", "sec-websocket-version", "sec-websocket-key", "sec-websocket-protocol")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request.

    Attributes:
        command: what the client was asked for, such as `kubectl apply`.
        method: GET, POST and so on.
        target: path and query, as sent.
        headers: name and value of those that a client chooses; no credentials.
        body: base64; empty for none.
    """

    command: str
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: str = ""

    @property
    def reads(self) -> bool:
        """It changes nothing."""
        return self.method in ("GET", "HEAD")

    @property
    def watches(self) -> bool:
        """Its answer does not end by itself."""
        return "watch=true" in self.target or "watch=1" in self.target or "follow=true" in self.target

    @property
    def upgrades(self) -> bool:
        """It asks for a raw connection."""
        return any(name.lower() == "upgrade" for name, _ in self.headers)

    def into(self, namespace: str) -> tuple[str, bytes]:
        """Target and body with another namespace."""
        if len(namespace) != len(NAMESPACE):
            raise ValueError(f"{namespace}: must be as long as {NAMESPACE}")
        body = base64.b64decode(self.body).replace(NAMESPACE.encode(), namespace.encode())
        return self.target.replace(NAMESPACE, namespace), body

    def line(self) -> str:
        """As it is written to the file."""
        return json.dumps(asdict(self), separators=(",", ":"))


def kept(headers: list[tuple[str, str]], *, upgrade: bool) -> list[tuple[str, str]]:
    """The headers that are the client's own choice."""
    names = _KEPT_HEADERS + (_UPGRADE_HEADERS if upgrade else ())
    return [(name, value) for name, value in headers if name.lower() in names or name.lower().startswith("x-stream")]


def read(file: Path) -> Iterator[Recorded]:
    """The requests of one client."""
    for line in file.read_text().splitlines():
        fields = json.loads(line)
        yield Recorded(**{**fields, "headers": [(name, value) for name, value in fields["headers"]]})
