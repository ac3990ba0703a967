"""Kubernetes `Status` objects: the form of every error that the gateway itself gives under `/k8s`."""

from __future__ import annotations

import orjson
from aiohttp import web

from libs.clock import new_id
from libs.faults import Code, Fault
from libs.rest.errors import REQUEST_ID

_REASONS: dict[Code, tuple[int, str]] = {
    Code.INVALID_ARGUMENT: (400, "BadRequest"),
    Code.OUT_OF_RANGE: (400, "BadRequest"),
    Code.UNAUTHENTICATED: (401, "Unauthorized"),
    Code.PERMISSION_DENIED: (403, "Forbidden"),
    Code.NOT_FOUND: (404, "NotFound"),
    Code.FAILED_PRECONDITION: (403, "Forbidden"),
    Code.RESOURCE_EXHAUSTED: (429, "TooManyRequests"),
    Code.UNAVAILABLE: (503, "ServiceUnavailable"),
    Code.DEADLINE_EXCEEDED: (504, "Timeout"),
}
_CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    413: "RESOURCE_EXHAUSTED", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_OFFLINE = "CLUSTER_OFFLINE"
_FIRST_ERROR, _FIRST_SERVER_ERROR = 400, 500


def http_status(fault: Fault) -> int:
    """The HTTP status of a fault."""
    return _REASONS.get(fault.code, (500, ""))[0]


def answer(fault: Fault, request_id: str = "") -> web.Response:
    """The answer that tells of a fault, with our id of the request, or a new one."""
    status, reason = _REASONS.get(fault.code, (500, "InternalError"))
    body: dict[str, object] = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": fault.message, "reason": reason, "code": status,
    }  # fmt: skip
    request_id = request_id or new_id().hex
    details: dict[str, object] = {"causes": [{"reason": "RequestID", "message": request_id}]}
    body["details"] = details
    headers = {"Cache-Control": "no-store", REQUEST_ID: request_id}
    if fault.retry_after is not None:
        seconds = max(1, int(fault.retry_after.total_seconds()))
        details["retryAfterSeconds"] = seconds
        if fault.reason != _OFFLINE:  # kubectl would try ten times in silence before it tells
            headers["Retry-After"] = str(seconds)
    if fault.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


def code_of(status: int) -> str:
    """The canonical code's name that stands in audit for an HTTP status."""
    if status < _FIRST_ERROR:
        return "OK"
    return _CODES.get(status, "INTERNAL" if status >= _FIRST_SERVER_ERROR else "FAILED_PRECONDITION")
