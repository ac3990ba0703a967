"""Asking a service whether it serves: gRPC health over the hub's mutual TLS or in the clear, or a plain HTTPS path."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.certificates import Certificates

_PAUSE = 0.1  # seconds between two questions


async def until_serving(port: int, service: str, certificates: Certificates | None) -> None:
    """Waits until a service's own health says SERVING; the caller holds the deadline."""
    async with _channel(port, service, certificates) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                pass
            else:
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(_PAUSE)


def _channel(port: int, service: str, certificates: Certificates | None) -> grpc.aio.Channel:
    # a refused connection is tried again soon: the default back-off grows to minutes
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500), ("grpc.use_local_subchannel_pool", 1)]
    target = f"127.0.0.1:{port}"
    if certificates is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(
        certificates.ca.read_bytes(), certificates.key("gateway").read_bytes(), certificates.certificate("gateway").read_bytes()
    )
    return grpc.aio.secure_channel(
        target, credentials, options=[*options, ("grpc.ssl_target_name_override", f"{service}.hub.kubegems.internal")]
    )


async def until_answers(url: str, authority: Path) -> None:
    """Waits until an HTTPS path answers 200; the caller holds the deadline."""
    context = ssl.create_default_context(cafile=authority)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while True:
            try:
                async with session.get(url, ssl=context) as reply:
                    if reply.status == 200:  # noqa: PLR2004 -- OK
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(_PAUSE)
