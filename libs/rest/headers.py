"""What a request's headers say: which form is wanted, who calls, until when, and under which conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.message import Message

from libs.faults import Invalid, Violation
from libs.rest.binding import HTTP_BODY, Binding
from libs.rest.errors import HttpFault
from libs.rpc.call import Call, Method

JSON = "application/json"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
_MAX_KEY = 64
_KEPT = ("idempotency-key",)
_ONCE = frozenset({
    "authorization", "content-type", "content-encoding", "if-match", "idempotency-key", "host", "origin", "last-event-id", "grpc-timeout",
})  # fmt: skip
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_PRINTABLE = re.compile(r"[ -~]*")
_UNIT = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def form(method: Method, accept: str) -> str:
    """The content type of the answer, by `Accept`; 406 when the client takes none that we have."""
    kinds = _kinds(accept)
    if method.descriptor.output_type.full_name == HTTP_BODY:
        return "application/octet-stream" if method.streams else JSON
    if method.streams:
        for kind in kinds:
            if kind in (SSE, NDJSON):
                return kind
    offered = (NDJSON, SSE) if method.streams else (JSON,)
    if not kinds or any(k in ("*/*", "application/*") for k in kinds):
        return offered[0]
    if not method.streams and JSON in kinds:
        return JSON
    raise HttpFault.of(406, "NOT_ACCEPTABLE", f"the answer comes as {' or '.join(offered)}, not as {accept[:100]!r}")


@lru_cache(maxsize=256)
def _kinds(accept: str) -> tuple[str, ...]:
    return tuple(part.split(";")[0].strip().lower() for part in accept.split(",") if part.strip())


def refuse_doubled(doubled: frozenset[str]) -> None:
    """Raises Invalid for a header that came twice and of which two readers could take different ones."""
    if twice := doubled & _ONCE:
        raise Invalid(f"header given twice: {', '.join(sorted(twice))}")


def refuse_other_than_json(content_type: str) -> None:
    """Raises 415 for a body that does not say that it is JSON."""
    kind = content_type.split(";", maxsplit=1)[0].strip().lower()
    if kind != JSON:
        raise HttpFault.of(415, "UNSUPPORTED_MEDIA_TYPE", f"the body must be {JSON}, not {kind[:100]!r}")


def call(method: Method, headers: Mapping[str, str], address: str, request_id: str) -> Call:
    """The call that a request makes; raises Invalid for a time limit that is none."""
    made = Call(
        method,
        address=address,
        user_agent=headers.get("user-agent", "")[:256],
        transport="rest",
        request_id=request_id,
        traceparent=headers.get("traceparent", ""),
        credential=_bearer(headers.get("authorization", "")),
    )
    if text := headers.get("grpc-timeout"):
        made.timeout = _seconds(text)
    made.metadata = {name: headers[name] for name in _KEPT if name in headers}
    if unfit := [name for name, value in made.metadata.items() if not _PRINTABLE.fullmatch(value)]:  # no hop could carry it
        raise Invalid(f"{', '.join(unfit)} must be of printable ASCII characters")
    return made


def _bearer(header: str) -> str:
    kind, _, token = header.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _seconds(text: str) -> float:
    """GRPC's own form of a time limit, such as `5S` or `250m`."""
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise Invalid(f"grpc-timeout: {text[:20]!r} is no time limit such as 5S or 250m")
    return int(match[1]) * _UNIT[match[2]]


def preconditions(message: Message, call_: Call, headers: Mapping[str, str], binding: Binding) -> None:
    """`If-Match` is the etag, `Idempotency-Key` the request id, `Last-Event-ID` where to go on; a body that says otherwise is wrong."""
    if key := headers.get("idempotency-key"):
        if len(key) > _MAX_KEY:
            raise Invalid.one("request_id", f"Idempotency-Key has {len(key)} characters; at most {_MAX_KEY} are allowed")
        _agree(message, "request_id", key, "Idempotency-Key")
    if last := headers.get("last-event-id"):  # an EventSource goes on after the last event it saw
        _agree(message, "resume_token", last, "Last-Event-ID", wins=True)
    etag = headers.get("if-match", "")
    if etag and etag != "*":
        target = getattr(message, binding.body) if binding.message_body else message
        if not _agree(target, "etag", etag.removeprefix("W/").strip('"'), "If-Match"):
            raise Invalid(f"{call_.method.descriptor.name} takes no If-Match")


def matches(if_none_match: str, etag: str) -> bool:
    """Whether a client has this version already."""
    return any(tag.strip().removeprefix("W/") in ("*", f'"{etag}"') for tag in if_none_match.split(","))


def _agree(message: Any, name: str, value: str, header: str, *, wins: bool = False) -> bool:
    """Sets a field from a header; whether there is such a field."""
    if name not in message.DESCRIPTOR.fields_by_name:
        return False
    given = getattr(message, name)
    if given and given != value and not wins:
        raise Invalid.fields([Violation(name, f"{given!r} in the body is not {value!r} of {header}")])
    try:
        setattr(message, name, value)
    except UnicodeEncodeError as error:  # bytes that are no UTF-8 come as surrogates
        raise Invalid.one(name, f"{header} must be UTF-8") from error
    return True
