"""Reads traces back from Jaeger's query API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp

QUERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Span:
    """One span: its service, its name, and the ids that tie it to others."""

    service: str
    name: str
    id: str
    parent: str


@dataclass(frozen=True, slots=True)
class Jaeger:
    """A running Jaeger; `url` is its query API."""

    url: str

    async def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace; none when it is not (yet) known."""
        found = await self._get(f"/api/traces/{trace_id}")
        return [_span(span, trace) for trace in found.get("data") or [] for span in trace["spans"]]

    async def services(self) -> list[str]:
        """Services that sent anything."""
        return list((await self._get("/api/services")).get("data") or [])

    async def all_text(self, service: str, limit: int = 1500) -> str:
        """Everything recent of a service as text, for scans."""
        return str(await self._get(f"/api/traces?service={service}&limit={limit}&lookback=1h"))

    async def _get(self, path: str) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=QUERY_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self.url.rstrip("/") + path) as reply:
            body: dict[str, Any] = await reply.json() if reply.status == 200 else {}
            return body


def _span(span: dict[str, Any], trace: dict[str, Any]) -> Span:
    parents = [r["spanID"] for r in span.get("references", []) if r["refType"] == "CHILD_OF"]
    return Span(trace["processes"][span["processID"]]["serviceName"], span["operationName"], span["spanID"], parents[0] if parents else "")
