"""Which other origins' pages may call: those that are configured, by bearer token only, never with cookies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_TAKEN = "authorization, content-type, if-match, if-none-match, idempotency-key, last-event-id, grpc-timeout, traceparent"
_SHOWN = "etag, kubegems-request-id, kubegems-trace-id, kubegems-replayed, retry-after, "
_SHOWN += "ratelimit-limit, ratelimit-remaining, ratelimit-reset, deprecation, sunset"
_MAX_AGE = "600"


class Cors:
    """Answers browsers that ask for a page of another origin.

    Args:
        origins: such as `https://console.example.com`; ValueError for `*`, `null` and what is no origin.
    """

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(o.strip() for o in origins if o.strip())
        if wrong := sorted(o for o in self._origins if not _ORIGIN.fullmatch(o)):
            raise ValueError(f"no origin such as https://console.example.com: {', '.join(wrong)}")

    def __bool__(self) -> bool:
        return bool(self._origins)

    def headers(self, origin: str) -> dict[str, str]:
        """Headers of an answer to a page of an origin; `Vary` in any case, or a cache would hand one origin's answer to another."""
        if origin not in self._origins:
            return {"Vary": "Origin"}
        return {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _SHOWN}

    def preflight(self, headers: Mapping[str, str], allowed: Iterable[str]) -> dict[str, str]:
        """Headers of the answer to a browser that asks before it calls; nothing for who may not."""
        if headers.get("origin", "") not in self._origins or "access-control-request-method" not in headers:
            return {}
        return {
            "Access-Control-Allow-Methods": ", ".join(allowed),
            "Access-Control-Allow-Headers": _TAKEN,
            "Access-Control-Max-Age": _MAX_AGE,
        }
