"""What an error may look like on the wire, and what must never be in one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Words of our own that look like a leak and are none: type names of details, the domain, permissions are dotted too.
_OURS = re.compile(r"type\.googleapis\.com/[\w.]+|kubegems\.io|https?://www\.rfc-editor\.org")
_LEAKS = {
    "a stack": re.compile(r"Traceback|\bFile \"|line \d+, in |\.py\b|0x[0-9a-f]{6,}"),
    "an exception's name": re.compile(
        r"\b(?!InternalError\b)[A-Z]\w*(?:Error|Exception)\b|asyncpg|asyncio|aiohttp|\bgrpc\b|nats\.|errno|\bpsql|ssl\.c", re.ASCII
    ),
    "an address": re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\[::1?\]|\blocalhost\b|\b[\w-]+(?:\.[\w-]+)+:\d{2,5}\b|\b\w+://"),
    "a path": re.compile(r"(?:^|[\s\"'(=])/(?:home|root|tmp|usr|etc|var|proc|run|srv|work|opt|dev|app)\b|site-packages|\.s\.PGSQL"),
    "SQL": re.compile(
        r"\bSELECT\b|\bINSERT INTO\b|\bUPDATE \w+ SET\b|\bDELETE FROM\b|\bWHERE\b|relation \"|column \"|constraint \"|\bpg_\w+|\b\w+_pkey\b"
    ),
}


def leaks(text: str, tables: Iterable[str] = (), allowed: Iterable[str] = ()) -> list[str]:
    """What a text gives away.

    Args:
        text: of an error.
        tables: names as `schema.table`; a permission, which may begin alike, goes on with a verb.
        allowed: what the request itself said.
    """
    for word in allowed:
        text = text.replace(word, "")
    text = _OURS.sub("", text)
    found = [f"{what}: {match[0]!r}" for what, pattern in _LEAKS.items() if (match := pattern.search(text))]
    return found + [f"a table: {name}" for name in tables if re.search(rf"\b{re.escape(name)}\b(?!\.\w)", text)]


def standard(
    status: int, headers: Mapping[str, str], body: Any, *, tables: Iterable[str] = (), allowed: Iterable[str] = ()
) -> dict[str, Any]:
    """The error of an answer, which must be of the standard form; fails the test when it is not, or when it tells too much."""
    assert isinstance(body, dict), body
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "status", "message", "details"}
    assert error["code"] == status >= 400
    assert error["message"].strip()
    kinds = [detail["@type"].rsplit(".", 1)[-1] for detail in error["details"]]
    assert kinds[0] == "ErrorInfo"
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", error["details"][0]["reason"])
    assert error["details"][0]["domain"] == "kubegems.io"
    assert kinds[-1] == "RequestInfo"
    assert error["details"][-1]["requestId"] == {k.lower(): v for k, v in headers.items()}["kubegems-request-id"]
    assert not (found := leaks(json.dumps(body), tables, allowed)), (found, body)
    return error


def kubernetes(status: int, headers: Mapping[str, str], body: Any, *, allowed: Iterable[str] = ()) -> dict[str, Any]:
    """A `Status` of the gateway's own."""
    assert isinstance(body, dict), body
    assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", status)
    (cause,) = [c for c in body["details"]["causes"] if c["reason"] == "RequestID"]
    assert cause["message"] == {k.lower(): v for k, v in headers.items()}["kubegems-request-id"]
    assert not (found := leaks(json.dumps(body), allowed=allowed)), (found, body)
    return body
