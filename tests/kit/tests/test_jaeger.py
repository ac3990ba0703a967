"""The kit's Jaeger takes spans and gives them back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from deploy.local.collector import Jaeger

pytestmark = pytest.mark.cluster


async def test_a_span_can_be_read_back(jaeger: Jaeger, eventually: Callable[..., Awaitable[Any]]) -> None:
    """A span sent over OTLP is found by its trace id; another id is not."""
    provider = TracerProvider(resource=Resource.create({"service.name": "kit"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=jaeger.otlp, insecure=True), schedule_delay_millis=100))
    with provider.get_tracer("kit").start_as_current_span("kit.probe") as span:
        trace_id = f"{span.get_span_context().trace_id:032x}"
    provider.force_flush(5000)

    async def found(session: aiohttp.ClientSession, wanted: str) -> list[str]:
        async with session.get(f"{jaeger.url}/api/traces/{wanted}") as reply:
            content = await reply.json() if reply.ok else {}  # an unknown trace is a 404 in plain text
            return [s["operationName"] for t in content.get("data") or [] for s in t["spans"]]

    async with aiohttp.ClientSession() as session:
        assert await eventually(lambda: found(session, trace_id), within=10) == ["kit.probe"]
        assert await found(session, "1" * 32) == []
    provider.shutdown()
