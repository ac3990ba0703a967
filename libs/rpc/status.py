"""Faults on the wire: google.rpc.Status with ErrorInfo, BadRequest, RetryInfo, ResourceInfo and RequestInfo, there and back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import orjson
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from libs.faults import Code, Fault, Unavailable, Violation, rebuilt

DOMAIN = "kubegems.io"
DETAILS = "grpc-status-details-bin"
_MOST_MESSAGE = 1024  # bytes of grpc-message; metadata as a whole must stay under 8 KiB
_MOST_VIOLATIONS = 32
GRPC_CODE: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def to_status(fault: Fault, request_id: str = "") -> status_pb2.Status:
    """The wire's form of a fault, with our id of the request."""
    status = status_pb2.Status(code=int(fault.code), message=short(fault.message))
    for detail in _details(fault, request_id):
        status.details.add().Pack(detail)
    return status


def _details(fault: Fault, request_id: str) -> list[Message]:
    info = {k: short(v, 256) for k, v in fault.metadata.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=fault.reason, domain=DOMAIN, metadata=info)]
    if fault.violations:
        wrong = [(v.field, short(v.description, 256)) for v in fault.violations[:_MOST_VIOLATIONS]]
        violations = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in wrong]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if fault.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(fault.retry_after)
        details.append(retry)
    if name := resource_name(fault):
        details.append(error_details_pb2.ResourceInfo(resource_type=resource_type(name), resource_name=name))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return details


def from_status(status: status_pb2.Status) -> Fault:
    """The fault that another process told us about."""
    code = _code(status.code)
    reason, metadata = code.name, {}
    violations: tuple[Violation, ...] = ()
    retry_after: timedelta | None = None
    for detail in status.details:
        kind = detail.type_url.rsplit("/", 1)[-1]
        if kind == "google.rpc.ErrorInfo":
            info = _unpacked(detail, error_details_pb2.ErrorInfo())
            reason, metadata = info.reason or reason, dict(info.metadata)
        elif kind == "google.rpc.BadRequest":
            bad = _unpacked(detail, error_details_pb2.BadRequest())
            violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
        elif kind == "google.rpc.RetryInfo":
            retry_after = _unpacked(detail, error_details_pb2.RetryInfo()).retry_delay.ToTimedelta()
    fault = rebuilt(code, reason, status.message, metadata)
    fault.violations, fault.retry_after = violations, retry_after
    return fault


def from_rpc_error(error: grpc.aio.AioRpcError, target: str) -> tuple[Fault, bool]:
    """The fault of a failed call, and whether the other side answered it (and not the channel)."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS:
            status = status_pb2.Status()
            try:
                status.ParseFromString(value if isinstance(value, bytes) else value.encode())
            except DecodeError:
                break
            return from_status(status), True
    code = _code(error.code().value[0])
    if code is Code.UNAVAILABLE:
        return Unavailable(f"{target} is away; try again", {"service": target}, retry_after=timedelta(seconds=1)), False
    return rebuilt(code, code.name, f"{target}: {code.name.lower().replace('_', ' ')}"), False


def error_body(fault: Fault, http_status: int, request_id: str = "") -> bytes:
    """The REST form: `{"error": {"code", "status", "message", "details"}}`."""
    details: list[dict[str, Any]] = [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": fault.reason, "domain": DOMAIN, "metadata": fault.metadata}
    ]
    if fault.violations:
        violations = [{"field": v.field, "description": v.description} for v in fault.violations]
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
    if fault.retry_after is not None:
        delay = f"{fault.retry_after.total_seconds():.3f}".rstrip("0").rstrip(".") + "s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    if name := resource_name(fault):
        details.append({"@type": "type.googleapis.com/google.rpc.ResourceInfo", "resourceType": resource_type(name), "resourceName": name})
    if request_id:
        details.append({"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": request_id})
    return orjson.dumps({"error": {"code": http_status, "status": fault.code.name, "message": fault.message, "details": details}})


def resource_name(fault: Fault) -> str:
    """The resource that a fault speaks of; empty for none."""
    return fault.metadata.get("resource_name") or fault.metadata.get("resource") or ""


def resource_type(name: str) -> str:
    """The collection of a resource name, such as `tenants` for `tenants/acme`."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else ""


def short(text: str, most: int = _MOST_MESSAGE) -> str:
    """A text cut to what metadata may hold."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _unpacked(detail: AnyMessage, into: Any) -> Any:
    detail.Unpack(into)
    return into


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN
