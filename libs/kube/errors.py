"""Faults from the API server's answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import orjson

from libs import faults
from libs.faults import Code, Fault, Violation

_MAX_MESSAGE = 2048


class Conflict(Fault):
    """The object changed since it was read, or another manager owns the field."""

    code = Code.ABORTED
    reason = "CONFLICT"


class Expired(Fault):
    """The resource version or continue token is too old: list again."""

    code = Code.OUT_OF_RANGE
    reason = "EXPIRED"


class KindMissing(faults.NotFound):
    """The server does not serve the kind, such as a CRD that is not installed; not the same as an empty list."""

    reason = "KIND_MISSING"


_ITS_OWN = 500
# URLs, and addresses and host names with a port, IPv6 in brackets too.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"']+|(?:\[[0-9a-fA-F:]+\]|(?:\d{1,3}\.){3}\d{1,3})(?::\d+)?|[\w-]+(?:\.[\w-]+)+:\d+")


_BY_REASON: dict[str, type[Fault]] = {
    "AlreadyExists": faults.AlreadyExists,
    "Conflict": Conflict,
    "Expired": Expired,
    "Gone": Expired,
    "Timeout": faults.DeadlineExceeded,
}
_BY_STATUS: dict[int, type[Fault]] = {
    400: faults.Invalid,
    401: faults.Unauthenticated,
    403: faults.PermissionDenied,
    404: faults.NotFound,
    405: faults.Unimplemented,
    406: faults.Invalid,
    409: Conflict,
    410: Expired,
    413: faults.Invalid,
    415: faults.Invalid,
    422: faults.Invalid,
    429: faults.Exhausted,
}


def from_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Fault:
    """The fault that an answer of 400 and above means; what is not a `Status` is told by its HTTP status."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = {}
    if not isinstance(found, dict) or found.get("kind") != "Status":
        found = {"message": f"HTTP {status}"}
    found.setdefault("code", status)
    return from_status(found, (headers or {}).get("Retry-After", ""))


def from_status(status: Mapping[str, Any], retry_after: str = "") -> Fault:
    """The fault that a `Status` object means, as of an answer or of a watch's ERROR event."""
    code, reason = int(status.get("code") or 500), str(status.get("reason") or "")
    details = status.get("details") or {}
    kind = _BY_REASON.get(reason) or _BY_STATUS.get(code) or faults.Unavailable
    if kind is faults.NotFound and not details.get("name"):
        kind = KindMissing
    seconds = details.get("retryAfterSeconds") or (retry_after if retry_after.isdigit() else 0)
    metadata = {"status": str(code), "kubernetes_reason": reason}
    metadata |= {key: str(details[key]) for key in ("group", "kind", "name") if details.get(key)}
    return kind(
        _said(str(status.get("message") or reason or f"HTTP {code}"), code)[:_MAX_MESSAGE],
        metadata={key: value for key, value in metadata.items() if value},
        violations=tuple(_violations(details)) if kind is faults.Invalid else (),
        retry_after=timedelta(seconds=int(seconds)) if seconds else None,
    )


def _said(message: str, code: int) -> str:
    """What the server says; of its own troubles (a webhook, etcd) without the addresses inside the cluster that it names."""
    return _ADDRESS.sub("(an address)", message) if code >= _ITS_OWN else message


def _violations(details: Mapping[str, Any]) -> list[Violation]:
    return [
        Violation(str(cause["field"]), str(cause.get("message", ""))[:_MAX_MESSAGE])
        for cause in details.get("causes") or []
        if cause.get("field")
    ]
