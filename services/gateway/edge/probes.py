"""`/healthz`, `/readyz` and `/.well-known/jwks.json`."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from libs.faults import Fault
from libs.rest import HttpServer

_SECONDS = 2.0
_GOOD_SECONDS = 1.0  # for which an answer of the parts is good, so that a flood of questions asks them no more than this
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
        self._looking = asyncio.Lock()
        self._answered: dict[str, bool] = {}
        self._looked = -math.inf

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
        """All that is needed answers within 2 s, or did a second ago."""
        async with self._looking:  # who comes while another looks gets the same answer
            if time.monotonic() - self._looked >= _GOOD_SECONDS:
                self._answered = {name: await _answers(check) for name, check in self._needed.items()}
                self._looked = time.monotonic()
        there = {name: there() for name, there in self._wished.items()} | self._answered
        ready = not self._draining and all(self._answered.values())
        status = "draining" if self._draining else "ready" if ready else "not ready"
        parts = {name: "ok" if found else "away" for name, found in there.items()}
        return (200 if ready else 503), {}, orjson.dumps({"status": status, "parts": parts})

    async def jwks(self) -> tuple[int, Mapping[str, str], bytes]:
        """The public keys now valid; good for a minute."""
        return 200, {"Cache-Control": "public, max-age=60"}, orjson.dumps(self._jwks())


async def _answers(check: Check) -> bool:
    try:
        async with asyncio.timeout(_SECONDS):
            await check()
    except (Fault, OSError, TimeoutError):
        return False
    return True
