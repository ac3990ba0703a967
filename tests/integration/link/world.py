"""A cluster behind an API server double, as `/k8s` shows it to one user."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.link.client import Reply, Wire
from tests.integration.link.rig import Rig, kubeconfig
from tests.integration.link.upstream import Came, Upstream, upstream

PODS = "/api/v1/namespaces/acme-shop-dev/pods"
OPS = "gems:project:acme/shop:ops"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"


class World:
    """One cluster named `local` behind a double, one user with a token."""

    def __init__(self, rig: Rig, up: Upstream, token: str) -> None:
        self.rig, self.up, self.token = rig, up, token
        self.wires: list[Wire] = []

    async def wire(self) -> Wire:
        """A new connection."""
        self.wires.append(await Wire.open(self.rig))
        return self.wires[-1]

    async def ask(
        self, method: str, path: str, *headers: str, body: bytes = b"", token: str | None = None, auto_length: bool = True
    ) -> Reply:
        """One request on a connection of its own."""
        wire = await self.wire()
        bearer = f"Authorization: Bearer {self.token if token is None else token}"
        return await wire.ask(method, f"/k8s/clusters/local{path}", bearer, *headers, body=body, auto_length=auto_length)

    async def upgrade(
        self, *headers: str, path: str = f"{PODS}/web/exec?command=sh", method: str = "GET", protocol: str = "websocket"
    ) -> Wire:
        """Asks for an upgrade; the head is not read yet."""
        wire = await self.wire()
        lines = (f"Authorization: Bearer {self.token}", "Connection: Upgrade", f"Upgrade: {protocol}", *headers)
        await wire.send(method, f"/k8s/clusters/local{path}", *lines)
        return wire


@asynccontextmanager
async def world_of(rig: Rig, folder: Path, user: str, *groups: str) -> AsyncIterator[World]:
    """The world of a user with groups."""
    async with upstream() as up, rig.agent(str(uuid.uuid4()), kubeconfig(folder / "k", up.url), name="local"):
        rig.journal.records.clear()
        rig.access.ended.clear()
        found = World(rig, up, rig.access.add(user, *groups))
        yield found
        for wire in found.wires:
            wire.close()


def echo(protocol: bytes) -> Any:
    """Switches and sends back what comes, shouting."""

    async def answer(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCH % protocol + b"hello")
        while chunk := await reader.read(65536):
            writer.write(chunk.upper())
            await writer.drain()
        writer.close()

    return answer
