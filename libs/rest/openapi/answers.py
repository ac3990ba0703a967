"""Answers: what a call gives when it works, and each error with the standard body."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor

from kubegems.policy.v1 import policy_pb2
from libs.rest.binding import HTTP_BODY, Binding
from libs.rest.headers import JSON, NDJSON, SSE
from libs.rest.openapi.examples import Examples
from libs.rest.openapi.fields import Json
from libs.rest.openapi.schemas import Schemas

_DETAIL = "type.googleapis.com/google.rpc."
_Rule = policy_pb2.Rule
# HTTP status → component, canonical code, reason, what it means.
ERRORS: dict[int, tuple[str, str, str, str]] = {
    400: ("BadRequest", "INVALID_ARGUMENT", "INVALID_REQUEST", "A field is wrong, or the state of things is (FAILED_PRECONDITION)."),
    401: ("Unauthenticated", "UNAUTHENTICATED", "UNAUTHENTICATED", "There is no token, or it is not good (any more)."),
    403: ("PermissionDenied", "PERMISSION_DENIED", "PERMISSION_DENIED", "The caller lacks the permission that the message names."),
    404: ("NotFound", "NOT_FOUND", "NOT_FOUND", "There is no such thing, or the caller may not know of it, or the API has no such path."),
    405: ("MethodNotAllowed", "UNIMPLEMENTED", "METHOD_NOT_ALLOWED", "The path is served, by other methods; `Allow` names them."),
    406: ("NotAcceptable", "INVALID_ARGUMENT", "NOT_ACCEPTABLE", "None of the forms that `Accept` names is served."),
    408: ("TooSlow", "DEADLINE_EXCEEDED", "BODY_TOO_SLOW", "The body did not come in time."),
    409: ("Conflict", "ABORTED", "ETAG_MISMATCH", "The etag is not current (ABORTED), or the name is or was taken (ALREADY_EXISTS)."),
    413: ("TooLarge", "RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE", "The body is larger than `x-kubegems-max-request-bytes`."),
    415: ("UnsupportedMediaType", "INVALID_ARGUMENT", "UNSUPPORTED_MEDIA_TYPE", "The body is not `application/json`, or is compressed."),
    429: ("TooMany", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "Too much, too often; `Retry-After` says when to come back."),
    431: ("HeadersTooLarge", "INVALID_ARGUMENT", "HEADERS_TOO_LARGE", "The request's line or one of its headers is too long."),
    499: ("Cancelled", "CANCELLED", "CANCELLED", "The caller gave up."),
    500: ("Internal", "INTERNAL", "INTERNAL", "A mistake of ours; the message holds an id for the operator, and nothing else."),
    501: ("Unimplemented", "UNIMPLEMENTED", "UNIMPLEMENTED", "A part that this call needs is too old for it."),
    503: ("Unavailable", "UNAVAILABLE", "UNAVAILABLE", "Something needed is away; `Retry-After` says when to try again."),
    504: ("DeadlineExceeded", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "The caller's time (`grpc-timeout`), or 60 s, are over."),
}  # fmt: skip
_WRONG, _WAIT = 400, (429, 503)
_ALWAYS = (400, 401, 406, 429, 431, 500, 501, 503, 504)
_WITH_BODY = (408, 413, 415)
_HEADERS: dict[str, tuple[str, Json]] = {
    "kubegems-request-id": ("Our id of the request, also in our logs and traces.", {"type": "string"}),
    "Retry-After": ("Seconds until trying again can help.", {"type": "integer"}),
    "ETag": ("Version of the resource, as in its `etag`.", {"type": "string"}),
}
_SSE = "One `data:` line of JSON per event, a comment each 15 s of silence, an event `error` with the standard error body at a bad end."
_NDJSON = "One line of JSON per event, an empty line each 15 s of silence, a line with the standard error body at a bad end."


def components() -> Json:
    """Schemas, headers and answers of errors, shared by all operations."""
    headers = {name: {"description": said, "schema": schema} for name, (said, schema) in _HEADERS.items()}
    return {"responses": {component[0]: _error(status, *component) for status, component in ERRORS.items()}, "headers": headers}


def error_schema() -> Json:
    """The standard error body."""
    error = {
        "type": "object",
        "required": ["code", "status", "message", "details"],
        "additionalProperties": False,
        "properties": {
            "code": {"type": "integer", "description": "The HTTP status."},
            "status": {"type": "string", "description": "The canonical code, such as `NOT_FOUND`."},
            "message": {
                "type": "string",
                "description": "For people: what was wrong, with which value, what to do. It may change.",
            },
            "details": {"type": "array", "items": _detail(), "minItems": 1},
        },
    }
    return {
        "type": "object",
        "description": "The body of every error.",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {"error": error},
    }


def _detail() -> Json:
    return {
        "type": "object",
        "required": ["@type"],
        "properties": {
            "@type": {
                "type": "string",
                "description": "`ErrorInfo` and `RequestInfo` always; `BadRequest`, `RetryInfo`, `ResourceInfo` where they apply.",
            },
            "reason": {"type": "string", "description": "Of ErrorInfo: UPPER_SNAKE, for programs to switch on."},
            "domain": {"type": "string"},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            "fieldViolations": {
                "type": "array",
                "description": "Of BadRequest: each wrong field, by its path in proto names.",
                "items": {"type": "object", "properties": {"field": {"type": "string"}, "description": {"type": "string"}}},
            },
            "retryDelay": {"type": "string", "description": "Of RetryInfo, such as `1.5s`."},
            "resourceType": {"type": "string"},
            "resourceName": {"type": "string"},
            "requestId": {"type": "string", "description": "Of RequestInfo: our id of the request, for whom you ask about it."},
        },
    }


def _error(status: int, _component: str, code: str, reason: str, said: str) -> Json:
    details: list[Json] = [{"@type": _DETAIL + "ErrorInfo", "reason": reason, "domain": "kubegems.io", "metadata": {}}]
    headers = {"kubegems-request-id": _ref("headers", "kubegems-request-id")}
    if status == _WRONG:
        violation = {"field": "page_size", "description": "501 must be at most 500"}
        details.append({"@type": _DETAIL + "BadRequest", "fieldViolations": [violation]})
    if status in _WAIT:
        details.append({"@type": _DETAIL + "RetryInfo", "retryDelay": "1s"})
        headers["Retry-After"] = _ref("headers", "Retry-After")
    details.append({"@type": _DETAIL + "RequestInfo", "requestId": "01890a5dac96774bbcceb302099a8057"})
    body = {"error": {"code": status, "status": code, "message": said, "details": details}}
    return {"description": said, "headers": headers, "content": {JSON: {"schema": _ref("schemas", "Error"), "example": body}}}


def answers(binding: Binding, schemas: Schemas, examples: Examples) -> Json:
    """What a call may answer, by status."""
    method = binding.method
    found: Json = {"200": _good(binding, schemas, examples)}
    statuses = {*_ALWAYS, *(_WITH_BODY if binding.body else ())}
    if method.rule.auth == _Rule.USER:
        statuses |= {403, 404}
    if binding.template.variables:
        statuses.add(404)
    if method.rule.audit in (_Rule.WRITE, _Rule.SENSITIVE):
        statuses.add(409)
    if binding.http_method == "GET" and has_etag(method.descriptor.output_type):
        found["304"] = {"description": "It is as `If-None-Match` says.", "headers": {"ETag": _ref("headers", "ETag")}}
    return found | {str(status): _ref("responses", ERRORS[status][0]) for status in sorted(statuses)}


def _good(binding: Binding, schemas: Schemas, examples: Examples) -> Json:
    method = binding.method
    output: Any = method.descriptor.output_type
    headers = {"kubegems-request-id": _ref("headers", "kubegems-request-id")}
    if has_etag(output):
        headers["ETag"] = _ref("headers", "ETag")
    field = output.fields_by_name[binding.response_body] if binding.response_body else None
    raw = (field.message_type if field is not None else output) is not None and _is_raw(field.message_type if field is not None else output)
    if raw:
        kind = "A stream of bytes" if method.streams else "Bytes"
        return {"description": f"{kind}; the content type says of what.", "headers": headers, "content": {"*/*": {}}}
    schema = schemas.field(field, sent=False) if field is not None else schemas.message(output, sent=False)
    if method.streams:
        forms = {NDJSON: {"schema": schema, "x-kubegems-stream": _NDJSON}, SSE: {"schema": schema, "x-kubegems-stream": _SSE}}
        said = "A stream of events, in the form that `Accept` names; the schema is that of one event."
        return {"description": said, "headers": headers, "content": forms}
    content: Json = {"schema": schema}
    example = examples.field(field, sent=False) if field is not None else examples.message(output, sent=False)
    if example:
        content["example"] = example
    return {"description": schemas.said(output) or "Done.", "headers": headers, "content": {JSON: content}}


def has_etag(descriptor: Descriptor) -> bool:
    """Whether a message has a version."""
    return "etag" in descriptor.fields_by_name


def _is_raw(descriptor: Descriptor | None) -> bool:
    return descriptor is not None and descriptor.full_name == HTTP_BODY


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
