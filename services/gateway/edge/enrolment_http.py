"""`/enrolment/…`: joining and renewal on the HTTPS edge, for networks where an agent reaches that port alone.

`GET ca` is the hub's CA (PEM), which the agent believes by the hash that it was given. `POST Enrol` and `POST Renew` carry
the EnrolmentService's messages as protobuf, errors as google.rpc.Status; the same pipeline, limits and audit as on its own
listener.
"""

from __future__ import annotations

from aiohttp import web
from google.protobuf.message import DecodeError, Message

from libs.clock import new_id
from libs.faults import Code, Fault, Invalid
from libs.rest import HttpServer
from libs.rpc import status
from libs.rpc.call import Call
from libs.rpc.pipeline import Pipeline

PROTOBUF = "application/x-protobuf"
_SERVICE = "/kubegems.fleet.v1.EnrolmentService/"
_MOST = 64 * 1024
_SECONDS = 20.0
_STATUS = {
    Code.INVALID_ARGUMENT: 400, Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429, Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 504,
}  # fmt: skip


class EnrolmentHttp:
    """The handler. It is not for browsers: a request with an Origin is refused.

    Args:
        pipeline: has the EnrolmentService.
        authority: the hub's CA (PEM).
    """

    def __init__(self, pipeline: Pipeline, authority: str) -> None:
        self._pipeline = pipeline
        self._authority = authority

    def mount(self, server: HttpServer) -> None:
        """Adds the paths to a server."""
        server.add_raw_route("/enrolment/ca", self.ca, "GET")
        server.add_raw_route("/enrolment/{method:Enrol|Renew}", self.handle, "POST")

    async def ca(self, _request: web.Request) -> web.StreamResponse:
        """The hub's CA."""
        return web.Response(text=self._authority, content_type="application/x-pem-file")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One call."""
        if request.headers.get("Origin") is not None or request.content_type != PROTOBUF:
            return web.Response(status=web.HTTPUnsupportedMediaType.status_code, text="for agents only")
        try:
            return _answer(200, await self._called(request))
        except Fault as fault:
            return _answer(_STATUS.get(fault.code, 500), status.to_status(fault).SerializeToString())

    async def _called(self, request: web.Request) -> bytes:
        method = self._pipeline.method(_SERVICE + request.match_info["method"])
        assert method is not None, "the pipeline has the EnrolmentService"
        call = Call(
            method, address=request.remote or "", user_agent=request.headers.get("User-Agent", "")[:256], transport="rest",
            request_id=new_id().hex, traceparent=request.headers.get("traceparent", ""), timeout=_SECONDS,
        )  # fmt: skip

        async def read() -> Message:  # for whom the limits let in
            try:
                return method.request_class.FromString(await _body(request))
            except DecodeError as error:
                raise Invalid("the request cannot be read") from error

        return bytes((await self._pipeline.unary(call, read)).SerializeToString())


async def _body(request: web.Request) -> bytes:
    found = bytearray()
    async for piece in request.content.iter_any():
        found += piece
        if len(found) > _MOST:
            raise Invalid(f"the request has more than {_MOST} bytes")
    return bytes(found)


def _answer(code: int, body: bytes) -> web.Response:
    return web.Response(status=code, body=body, content_type=PROTOBUF, headers={"Cache-Control": "no-store"})
