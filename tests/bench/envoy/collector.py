"""A collector of spans that throws them away, in a process of its own, so that neither side pays for it.

`python -m tests.bench.envoy.collector` tells its port in one line, then how many spans have come for each line that it reads.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Collector:
    """Counts what comes."""

    def __init__(self) -> None:
        self.spans = 0

    async def export(self, request: pb.ExportTraceServiceRequest, _context: object) -> pb.ExportTraceServiceResponse:
        """Takes some."""
        self.spans += sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
        return pb.ExportTraceServiceResponse()


async def main() -> None:
    """Collects until its input ends."""
    collector, server = Collector(), grpc.aio.server()
    export = grpc.unary_unary_rpc_method_handler(
        collector.export, pb.ExportTraceServiceRequest.FromString, pb.ExportTraceServiceResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": export}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    while await asyncio.to_thread(sys.stdin.readline):
        print(collector.spans, flush=True)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
