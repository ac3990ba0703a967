"""Health and reflection over gRPC, for whoever watches the process."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

_SERVICE = "kubegems.controller"


class HealthServer:
    """Serves `grpc.health.v1.Health` for the process and for the controller's work, in plain text: bind it to loopback or a pod."""

    def __init__(self) -> None:
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(maximum_concurrent_rpcs=64)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = 0

    async def start(self, address: str) -> None:
        """Serves on host:port; says SERVING for the process, and NOT_SERVING for its work until it is ready."""
        self.port = self._server.add_insecure_port(address)
        await self._server.start()
        await self.set_ready(ready=False)

    async def set_ready(self, *, ready: bool) -> None:
        """Says whether the watches stand and the work goes on, or another process leads and this one stands by."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", serving)
        await self._health.set(_SERVICE, serving if ready else not_serving)

    async def drain(self) -> None:
        """Says NOT_SERVING to everyone who asks."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Stops."""
        await self._server.stop(1.0)
