"""HTTP requests → calls of the pipeline → HTTP answers; knows no HTTP server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from libs.clock import new_id
from libs.faults import Fault, Invalid, Violation
from libs.rest import errors, paths
from libs.rest.binding import HTTP_BODY, Binding, bindings
from libs.rest.encode import to_json
from libs.rest.errors import HttpFault
from libs.rest.template import Routes
from libs.rpc.call import Call, Method
from libs.rpc.listeners import public
from libs.rpc.pipeline import Pipeline

JSON = "application/json"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
_MAX_KEY = 64
_KEPT = ("idempotency-key",)


@dataclass(slots=True)
class Request:
    """What an HTTP server hands over.

    Attributes:
        method: `GET`, …
        target: raw path and query, as they came.
        headers: by lower-case name; a name that came twice is in `doubled`.
        doubled: names that came more than once.
        body: the whole body.
        address: the client's address.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    address: str = ""
    doubled: frozenset[str] = frozenset()


@dataclass(slots=True)
class Answer:
    """One answer; with `items` its body is a stream in the form that `content_type` says."""

    status: int
    content_type: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    items: AsyncGenerator[Any, None] | None = None
    method: Method | None = None


class Api:
    """The REST form of a pipeline's public methods.

    Args:
        pipeline: runs the calls.
        methods: which of its methods are bound; internal ones are left out in any case.
    """

    def __init__(self, pipeline: Pipeline, methods: Iterable[Method] | None = None) -> None:
        self._pipeline = pipeline
        self._routes: Routes[Binding] = Routes()
        for method in public(pipeline.methods if methods is None else methods):
            for binding in bindings(method):
                self._routes.add(binding.http_method, binding.template, binding)

    async def answer(self, request: Request) -> Answer:
        """Answers a request; streams are begun by whoever iterates `items`. Never raises a Fault."""
        request_id = new_id().hex
        headers = {"kubegems-request-id": request_id}
        try:
            return await self._answer(request, request_id, headers)
        except Fault as fault:
            status, more, body = errors.answer(fault)
            return Answer(status, JSON, body, headers | more)

    async def _answer(self, request: Request, request_id: str, headers: dict[str, str]) -> Answer:
        binding, segments, pairs = self._find(request)
        method = binding.method
        form = _form(method, request.headers.get("accept", ""))
        _check(request, binding)
        call = _call(method, request, request_id)
        call.response_headers = headers

        def message() -> Message:
            read = binding.request(segments, pairs, request.body, request.headers.get("content-type", ""))
            _preconditions(read, call, request.headers, binding.body)
            return read

        if method.streams:
            headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return Answer(200, form, headers=headers, items=self._pipeline.stream(call, message, announce=True), method=method)
        reply = await self._pipeline.unary(call, message)
        if isinstance(reply, bytes):
            reply = method.response_class.FromString(reply)
        return _reply(reply, headers, request.headers.get("if-none-match", "") if request.method in ("GET", "HEAD") else "")

    def _find(self, request: Request) -> tuple[Binding, list[str], list[tuple[str, str]]]:
        segments, pairs = paths.split(request.target)
        found = self._routes.find(segments)
        if not found:
            raise HttpFault.of(404, "PATH_NOT_FOUND", "there is no such path in the API")
        hit = found.get("GET" if request.method == "HEAD" else request.method)
        if hit is None or (request.method == "HEAD" and hit[0].method.streams):
            allowed = ", ".join(sorted({*found, *(("HEAD",) if "GET" in found else ())}))
            raise HttpFault.of(405, "METHOD_NOT_ALLOWED", f"{request.method} is not served here; {allowed} is", {"Allow": allowed})
        return hit[0], hit[1], pairs


def _form(method: Method, accept: str) -> str:
    """The content type of the answer, by `Accept`; 406 when the client takes none that we have."""
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    if method.streams:
        for kind in kinds:
            if kind in (SSE, NDJSON):
                return kind
    offered = (NDJSON, SSE) if method.streams else (JSON,)
    if not kinds or any(k in ("*/*", "application/*") for k in kinds):
        return offered[0]
    if not method.streams and (JSON in kinds or method.descriptor.output_type.full_name == HTTP_BODY):
        return JSON
    raise HttpFault.of(406, "NOT_ACCEPTABLE", f"the answer comes as {' or '.join(offered)}, not as {accept[:100]!r}")


def _check(request: Request, binding: Binding) -> None:
    if twice := request.doubled & {"authorization", "content-type", "if-match", "idempotency-key", "host"}:
        raise Invalid(f"header given twice: {', '.join(sorted(twice))}")
    if request.body and binding.body:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        target = binding.method.descriptor.input_type
        if binding.body != "*":
            inner = target.fields_by_name[binding.body].message_type
            assert inner is not None
            target = inner
        if kind != JSON and target.full_name != HTTP_BODY:
            raise HttpFault.of(415, "UNSUPPORTED_MEDIA_TYPE", f"the body must be {JSON}, not {kind[:100]!r}")


def _call(method: Method, request: Request, request_id: str) -> Call:
    headers = request.headers
    call = Call(
        method,
        address=request.address,
        user_agent=headers.get("user-agent", "")[:256],
        transport="rest",
        request_id=request_id,
        traceparent=headers.get("traceparent", ""),
        credential=_bearer(headers.get("authorization", "")),
    )
    call.metadata = {name: headers[name] for name in _KEPT if name in headers}
    return call


def _bearer(header: str) -> str:
    kind, _, token = header.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _preconditions(message: Message, call: Call, headers: Mapping[str, str], body: str) -> None:
    """`If-Match` is the etag, `Idempotency-Key` the request id; a body that says otherwise is wrong."""
    if key := headers.get("idempotency-key"):
        if len(key) > _MAX_KEY:
            raise Invalid.one("request_id", f"Idempotency-Key has {len(key)} characters; at most {_MAX_KEY} are allowed")
        _agree(message, "request_id", key, "Idempotency-Key")
    etag = headers.get("if-match", "")
    if last := headers.get("last-event-id"):  # an EventSource goes on after the last event it saw
        _agree(message, "resume_token", last, "Last-Event-ID")
    if etag and etag != "*":
        target = message if not body or body == "*" else getattr(message, body)
        if not _agree(target, "etag", etag.removeprefix("W/").strip('"'), "If-Match"):
            raise Invalid(f"{call.method.descriptor.name} takes no If-Match")


def _agree(message: Any, name: str, value: str, header: str) -> bool:
    """Sets a field from a header; whether there is such a field."""
    if name not in message.DESCRIPTOR.fields_by_name:
        return False
    given = getattr(message, name)
    if given and given != value:
        raise Invalid.fields([Violation(name, f"{given!r} in the body is not {value!r} of {header}")])
    setattr(message, name, value)
    return True


def _reply(reply: Any, headers: dict[str, str], if_none_match: str) -> Answer:
    descriptor = reply.DESCRIPTOR
    if descriptor.full_name == HTTP_BODY:
        return Answer(200, reply.content_type or "application/octet-stream", reply.data, headers)
    if "etag" in descriptor.fields_by_name and reply.etag:
        headers["ETag"] = f'"{reply.etag}"'
        if if_none_match and headers["ETag"] in [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]:
            return Answer(304, JSON, b"", headers)
    return Answer(200, JSON, to_json(reply), headers)
