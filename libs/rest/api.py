"""HTTP requests → calls of the pipeline → HTTP answers; knows no HTTP server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from libs import log
from libs.clock import new_id
from libs.faults import Fault, Internal, Invalid
from libs.rest import compress, errors, headers, paths
from libs.rest.binding import ANY_METHOD, HTTP_BODY, Binding, bindings
from libs.rest.body import Body
from libs.rest.cors import Cors
from libs.rest.errors import HttpFault
from libs.rest.headers import JSON, NDJSON, SSE
from libs.rest.template import Routes
from libs.rpc import sizes, uploads
from libs.rpc.call import Call, Method
from libs.rpc.listeners import public
from libs.rpc.pipeline import Pipeline

__all__ = ["JSON", "NDJSON", "SSE", "Answer", "Api", "Request"]
_log = log.get("libs.rest")


@dataclass(slots=True)
class Request:
    """What an HTTP server hands over.

    Attributes:
        method: `GET`, …
        target: raw path and query, as they came.
        headers: by lower-case name; a name that came twice is in `doubled`.
        doubled: names that came more than once.
        body: what comes behind the headers, read only when the caller is let in; None for nothing.
        address: the client's address.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: Body | None = None
    address: str = ""
    doubled: frozenset[str] = frozenset()


@dataclass(slots=True)
class Answer:
    """One answer; with `items` its body is a stream: events in the form that `content_type` says, or with `raw` bytes.

    Of a raw stream the content type is that of its first item.
    """

    status: int
    content_type: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    items: AsyncGenerator[Any, None] | None = None
    method: Method | None = None
    binding: Binding | None = None
    raw: bool = False


class Api:
    """The REST form of a pipeline's public methods.

    Args:
        pipeline: runs the calls.
        methods: which of its methods are bound; internal ones are left out in any case.
        cors: which other origins' pages may call; none by default.
        limit: by client address, for what becomes no call (unknown paths, OPTIONS, broken requests, fixed documents); raises Exhausted.
    """

    def __init__(
        self, pipeline: Pipeline, methods: Iterable[Method] | None = None, *,
        cors: Cors | None = None, limit: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self._pipeline, self._cors, self._limit = pipeline, cors or Cors(), limit
        self._routes: Routes[Binding] = Routes()
        self._compressible: set[str] = set()
        for method in public(pipeline.methods if methods is None else methods):
            if sizes.compressible(method):
                self._compressible.add(method.path)
            for binding in bindings(method):
                self._routes.add(binding.http_method, binding.template, binding)

    async def answer(self, request: Request) -> Answer:
        """Answers a request; streams are begun by whoever iterates `items`. Never raises a Fault."""
        request_id = new_id().hex
        sent = {errors.REQUEST_ID: request_id}
        if self._cors:
            sent |= self._cors.headers(request.headers.get("origin", ""))
        try:
            routed = self._routed(request, request_id, sent)
            return routed if isinstance(routed, Answer) else await self._answer(request, *routed)
        except Fault as fault:
            status, more, body = errors.answer(fault, request_id)
            return Answer(status, JSON, body, sent | more)

    def _routed(self, request: Request, request_id: str, sent: dict[str, str]) -> Answer | tuple[Binding, str, Call, Any]:
        """The call that a request is, the form of its answer and what reads its message; or an answer without a call."""
        try:
            routed = self._read(request, request_id, sent)
        except Fault:
            self.uncalled(request.address)
            raise
        if isinstance(routed, Answer):
            self.uncalled(request.address)
        return routed

    def uncalled(self, address: str) -> None:
        """Draws on an address for what no call's limits hold back; raises Exhausted."""
        if self._limit is not None:
            self._limit(address)

    def _read(self, request: Request, request_id: str, sent: dict[str, str]) -> Answer | tuple[Binding, str, Call, Any]:
        segments, pairs = paths.split(request.target)
        found = self._routes.find(segments)
        if not found:
            raise HttpFault.of(404, "PATH_NOT_FOUND", "there is no such path in the API")
        if request.method == "OPTIONS" and "OPTIONS" not in found:
            return self._options(request, found, sent)
        binding, segments = _chosen(request.method, found)
        method = binding.method
        form = headers.form(method, request.headers.get("accept", ""))
        headers.refuse_doubled(request.doubled)
        call = headers.call(method, request.headers, request.address, request_id)
        call.response_headers = sent
        return binding, form, call, _given(request, binding, segments, pairs, call)

    async def _answer(self, request: Request, binding: Binding, form: str, call: Call, given: Any) -> Answer:
        method, sent = binding.method, call.response_headers
        if method.streams:
            raw = method.descriptor.output_type.full_name == HTTP_BODY
            sent |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            items = self._pipeline.stream(call, given, announce=True)
            return Answer(200, form, headers=sent, items=items, method=method, binding=binding, raw=raw)
        reply = await self._pipeline.unary(call, given)
        if isinstance(reply, bytes):
            reply = method.response_class.FromString(reply)
        if_none_match = request.headers.get("if-none-match", "") if request.method in ("GET", "HEAD") else ""
        answer = _reply(binding, reply, sent, if_none_match, call.request_id)
        if method.path in self._compressible:  # HEAD too, whose headers are those of GET
            await compress.squeeze(answer, request.headers.get("accept-encoding", ""))
        return answer

    def _options(self, request: Request, found: Mapping[str, Any], sent: dict[str, str]) -> Answer:
        """What is served at a path; and whether another origin's page may call it. Says nothing of who may call."""
        allowed = _allowed(found)
        more = self._cors.preflight(request.headers, allowed) if self._cors else {}
        return Answer(204, "", headers=sent | {"Allow": ", ".join(allowed)} | more)


def _chosen(http_method: str, found: Mapping[str, tuple[Binding, list[str]]]) -> tuple[Binding, list[str]]:
    hit = found.get(http_method) or (found.get("GET") if http_method == "HEAD" else None) or found.get(ANY_METHOD)
    if hit is None or (http_method == "HEAD" and hit[0].method.streams):
        allowed = ", ".join(_allowed(found))
        raise HttpFault.of(405, "METHOD_NOT_ALLOWED", f"{http_method[:20]} is not served here; {allowed} is", {"Allow": allowed})
    return hit


def _allowed(found: Mapping[str, tuple[Binding, list[str]]]) -> list[str]:
    methods = {"OPTIONS", *found} - {ANY_METHOD}
    if ANY_METHOD in found:
        methods |= {"GET", "PUT", "POST", "DELETE", "PATCH"}
    if "GET" in found and not found["GET"][0].method.streams:
        methods.add("HEAD")
    return sorted(methods)


def _given(request: Request, binding: Binding, segments: list[str], pairs: list[tuple[str, str]], call: Call) -> Any:
    """The function that makes the request's message; it takes the body off the wire, so it runs for callers who are let in."""
    kind = request.headers.get("content-type", "")
    body = request.body

    def read(raw: bytes) -> Message:
        if raw and binding.body and not binding.raw:
            headers.refuse_other_than_json(kind)
        message = binding.request(segments, pairs, raw, kind)
        headers.preconditions(message, call, request.headers, binding)
        return message

    if body is None or not (binding.body or binding.method.uploads):
        if body is not None:
            return lambda: _refuse_body(binding)
        if binding.method.uploads:
            call.upload = _nothing()
        return lambda: read(b"")
    if binding.method.uploads:
        call.upload = uploads.bounded(binding.method, body.pieces())
        return lambda: read(b"")
    given: Body = body

    async def whole() -> Message:
        return read(await given.whole(sizes.most(binding.method)))

    return whole


def _refuse_body(binding: Binding) -> Message:
    raise Invalid(f"{binding.http_method} takes no body here")


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield


def _reply(binding: Binding, reply: Any, sent: dict[str, str], if_none_match: str, request_id: str) -> Answer:
    part = getattr(reply, binding.response_body) if binding.response_body else reply
    descriptor = getattr(part, "DESCRIPTOR", None)
    if descriptor is not None and descriptor.full_name == HTTP_BODY:
        return Answer(200, part.content_type or "application/octet-stream", part.data, sent)
    etag = (getattr(part, "etag", "") or getattr(reply, "etag", "")).strip('"')  # ours come quoted already, as HTTP has them
    if etag:
        sent["ETag"] = f'"{etag}"'
        if if_none_match and headers.matches(if_none_match, etag):
            return Answer(304, JSON, b"", sent)
    try:
        return Answer(200, JSON, binding.encode(reply), sent)
    except (ValueError, TypeError) as error:  # a reply that has no JSON form is our mistake, not the caller's
        _log.error("rest.no_json", method=binding.method.path, correlation=request_id, exc_info=error)
        raise Internal(f"internal error; tell the operator this id: {request_id}", {"correlation": request_id}) from error
