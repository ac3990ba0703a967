"""A client of `/k8s` on a raw TLS socket, so that a test decides every byte."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any

import orjson

from tests.integration.link.rig import Rig


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)


class Wire:
    """One connection to the edge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, rig: Rig) -> Wire:
        """Connects."""
        tls = ssl.create_default_context(cafile=str(rig.folder / "ca.crt"))
        return cls(*await asyncio.open_connection("localhost", rig.edge_port, ssl=tls, limit=1 << 20))

    async def ask(self, method: str, target: str, *headers: str, body: bytes = b"", auto_length: bool = True) -> Reply:
        """Sends a request and reads the whole answer."""
        await self.send(method, target, *headers, body=body, auto_length=auto_length)
        return await self.reply(head_only=method == "HEAD")

    async def send(self, method: str, target: str, *headers: str, body: bytes = b"", auto_length: bool = True) -> None:
        """Sends a request."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
        if body and auto_length:
            lines.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        await self.writer.drain()

    async def head(self) -> Reply:
        """Reads an answer's head."""
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 15)
        first, *rest = raw[:-4].decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in rest)}
        return Reply(int(first.split()[1]), headers, b"")

    async def reply(self, *, head_only: bool = False) -> Reply:
        """Reads an answer; `whole` is false when it was cut off."""
        reply = await self.head()
        if head_only or reply.status in (101, 204, 304):
            return reply
        try:
            async with asyncio.timeout(15):
                if "content-length" in reply.headers:
                    reply.body = await self.reader.readexactly(int(reply.headers["content-length"]))
                else:
                    while (chunk := await self.chunk()) is not None:
                        reply.body += chunk
        except (asyncio.IncompleteReadError, ConnectionError):
            reply.whole = False
        return reply

    async def chunk(self) -> bytes | None:
        """The next chunk; None at the end."""
        size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
        content = await self.reader.readexactly(size + 2)
        return content[:-2] if size else None

    def close(self) -> None:
        """Drops the connection."""
        self.writer.transport.abort()
