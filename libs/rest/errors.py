"""Faults as HTTP answers."""

from __future__ import annotations

import math

from libs.clock import new_id
from libs.faults import Code, Fault
from libs.rpc.sizes import TooLarge
from libs.rpc.status import error_body

HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
REQUEST_ID = "kubegems-request-id"
_NEAREST = {404: Code.NOT_FOUND, 405: Code.UNIMPLEMENTED, 408: Code.DEADLINE_EXCEEDED, 429: Code.RESOURCE_EXHAUSTED}


class HttpFault(Fault):
    """A fault of HTTP's own (405, 406, 408, 415, 431, 404 of a path), with its status and headers."""

    http_status = 400
    headers: dict[str, str]

    @classmethod
    def of(cls, http_status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> HttpFault:
        """A fault with an HTTP status; its canonical code is the nearest."""
        code = _NEAREST.get(http_status, Code.INVALID_ARGUMENT)
        fault = cls(message)
        fault.__class__ = type("HttpFault", (HttpFault,), {"code": code, "reason": reason, "http_status": http_status})
        fault.headers = headers or {}
        return fault


def answer(fault: Fault, request_id: str = "") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a fault; both hold an id of the request, a new one when it has none yet."""
    request_id = request_id or new_id().hex
    headers: dict[str, str] = {}
    status = HTTP_STATUS[fault.code]
    if isinstance(fault, HttpFault):
        status, headers = fault.http_status, dict(fault.headers)
    elif isinstance(fault, TooLarge):
        status = 413
    if status == 401:  # noqa: PLR2004 -- the only status with a header of its own
        headers["WWW-Authenticate"] = 'Bearer realm="kubegems"'
    if fault.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(fault.retry_after.total_seconds())))
    headers[REQUEST_ID] = request_id
    return status, headers, error_body(fault, status, request_id)
