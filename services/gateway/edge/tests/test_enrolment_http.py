"""Enrolment on the HTTPS edge: who is let in, and what is read of whom."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry

from kubegems.fleet.v1 import enrolment_service_pb2
from libs.clock import HeldClock
from libs.faults import Exhausted
from libs.rest import Api, HttpServer
from libs.rpc import Call, Pipeline, methods
from libs.rpc.tests.doubles import completed
from services.gateway.edge.enrolment_http import EnrolmentHttp
from services.gateway.edge.limits import Limits

_SERVICE = enrolment_service_pb2.DESCRIPTOR.services_by_name["EnrolmentService"]


class _Full(Limits):
    """Has nothing left for anybody."""

    def address(self, call: Call) -> None:
        raise Exhausted(f"enough of {call.address}")


class _Nothing:
    pass


async def _status(limits: Limits, content: bytes) -> int:
    """The status for a POST that announces 100 bytes and sends these."""
    servicer: Any = completed(_SERVICE, _Nothing())
    pipeline = Pipeline(methods(_SERVICE, servicer), limiter=limits, registry=CollectorRegistry())
    server = HttpServer(Api(pipeline))
    EnrolmentHttp(pipeline, "ca").mount(server)
    port = await server.start("127.0.0.1", 0, None)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = b"POST /enrolment/Enrol HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n"
        writer.write(head + content)
        async with asyncio.timeout(5):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        await server.drain()


async def test_a_body_is_read_of_whom_the_limits_let_in() -> None:
    """A flood of strangers is refused before a byte of its bodies is waited for; what is no message is told so."""
    assert await _status(_Full(HeldClock()), b"") == 429
    assert await _status(Limits(HeldClock()), b"\xff" * 100) == 400
