"""The API server's answers become the right Faults."""

from __future__ import annotations

from datetime import timedelta

import orjson
import pytest

from libs import faults
from libs.kube import Conflict, Expired, KindMissing, errors


@pytest.mark.parametrize(
    ("code", "reason", "details", "kind"),
    [
        (400, "BadRequest", {}, faults.Invalid),
        (401, "Unauthorized", {}, faults.Unauthenticated),
        (403, "Forbidden", {}, faults.PermissionDenied),
        (404, "NotFound", {"name": "x", "kind": "pods"}, faults.NotFound),
        (409, "AlreadyExists", {}, faults.AlreadyExists),
        (409, "Conflict", {}, Conflict),
        (410, "Expired", {}, Expired),
        (422, "Invalid", {}, faults.Invalid),
        (429, "TooManyRequests", {}, faults.Exhausted),
        (500, "InternalError", {}, faults.Unavailable),
        (503, "ServiceUnavailable", {}, faults.Unavailable),
        (504, "Timeout", {}, faults.DeadlineExceeded),
    ],
)
def test_each_status_has_its_fault(code: int, reason: str, details: dict[str, str], kind: type[faults.Fault]) -> None:
    """Reason decides, then the HTTP status."""
    body = orjson.dumps({"kind": "Status", "code": code, "reason": reason, "message": "why", "details": details})
    fault = errors.from_response(code, body)
    assert type(fault) is kind
    assert fault.message == "why"
    assert fault.metadata["kubernetes_reason"] == reason


def test_a_kind_that_is_not_served_is_not_a_missing_object() -> None:
    """The router's 404 is KindMissing, which no caller may take for a deleted object."""
    assert isinstance(errors.from_response(404, b"404 page not found\n"), KindMissing)


def test_wrong_fields_are_all_told() -> None:
    """Causes become violations with their field."""
    causes = [{"reason": "FieldValueInvalid", "field": "spec.a", "message": "bad"}, {"field": "spec.b", "message": "worse"}]
    fault = errors.from_response(422, orjson.dumps({"kind": "Status", "code": 422, "reason": "Invalid", "details": {"causes": causes}}))
    assert [v.field for v in fault.violations] == ["spec.a", "spec.b"]


def test_retry_after_is_kept() -> None:
    """Seconds come from the header or from the details."""
    assert errors.from_response(429, b"slow down", {"Retry-After": "7"}).retry_after == timedelta(seconds=7)


def test_a_proxy_page_is_not_shown() -> None:
    """An answer that is no Status tells its HTTP status only."""
    assert errors.from_response(502, b"<html>secret host</html>").message == "HTTP 502"
