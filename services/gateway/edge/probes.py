"""`/healthz`, `/readyz` and `/.well-known/jwks.json`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from libs.faults import Fault
from libs.rest import HttpServer

_SECONDS = 2.0
Check = Callable[[], Awaitable[None]]


class Probes:
    """Says whether the process lives and whether it can serve.

    Args:
        needed: name → a check that raises while that part is away; without it the gateway is not ready.
        wished: name → whether that part is there; only told.
        jwks: the key set of access tokens.
    """

    def __init__(self, needed: Mapping[str, Check], wished: Mapping[str, Callable[[], bool]], jwks: Callable[[], Any]) -> None:
        self._needed, self._wished, self._jwks = needed, wished, jwks
        self._draining = False

    def mount(self, server: HttpServer) -> None:
        """Adds the paths to a server."""
        server.add_document("/healthz", self.healthz)
        server.add_document("/readyz", self.readyz)
        server.add_document("/.well-known/jwks.json", self.jwks)

    async def drain(self) -> None:
        """From now on not ready."""
        self._draining = True

    async def healthz(self) -> tuple[int, Mapping[str, str], bytes]:
        """The process runs its loop."""
        return 200, {}, b'{"status":"ok"}'

    async def readyz(self) -> tuple[int, Mapping[str, str], bytes]:
        """All that is needed answers within 2 s."""
        parts = {name: "ok" if there() else "away" for name, there in self._wished.items()}
        ready = not self._draining
        for name, check in self._needed.items():
            try:
                async with asyncio.timeout(_SECONDS):
                    await check()
                parts[name] = "ok"
            except (Fault, OSError, TimeoutError):
                parts[name], ready = "away", False
        status = "draining" if self._draining else "ready" if ready else "not ready"
        return (200 if ready else 503), {}, orjson.dumps({"status": status, "parts": parts})

    async def jwks(self) -> tuple[int, Mapping[str, str], bytes]:
        """The public keys now valid; good for a minute."""
        return 200, {"Cache-Control": "public, max-age=60"}, orjson.dumps(self._jwks())
