"""Trace context across processes: W3C `traceparent` strings in, spans out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import Token
from functools import lru_cache

from opentelemetry import trace as otel
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["Span", "SpanKind", "carry", "current_trace_id", "light", "link_to", "setup", "shutdown", "span", "traceparent"]

_PROPAGATOR = TraceContextTextMapPropagator()
_tracer = otel.get_tracer("kubegems")
_exports = True  # until `setup` says otherwise
_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_IDS = RandomIdGenerator()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)

Attributes = Mapping[str, str | int | bool]


def setup(service: str, *, endpoint: str | None) -> None:
    """Installs the process's tracer; exports over OTLP/gRPC when there is an endpoint."""
    global _exports  # noqa: PLW0603 -- one tracer per process, as OpenTelemetry has it
    _exports = bool(endpoint)
    provider = TracerProvider(resource=Resource.create({"service.name": f"kubegems-{service}"}))
    if endpoint:
        provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://")), schedule_delay_millis=500)
        )
    otel.set_tracer_provider(provider)


def shutdown() -> None:
    """Sends what is buffered and stops exporting; safe to call without setup."""
    provider = otel.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def span(
    name: str,
    *,
    parent: str | None = None,
    link: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, str | int | bool] | None = None,
) -> AbstractContextManager[Span]:
    """Runs a block as a span.

    Args:
        name: `noun.verb` or the RPC's full name; low cardinality.
        parent: traceparent of a trusted caller; without it the current span is the parent.
        link: traceparent of an untrusted or merely related caller; linked, never followed.
        kind: SERVER, CLIENT, PRODUCER, CONSUMER or INTERNAL.
        attributes: OpenTelemetry attributes; never secrets.
    """
    if not _exports:
        return _Carried(parent)
    context = _PROPAGATOR.extract({"traceparent": parent}) if parent else None
    links = link_to(link)
    return _tracer.start_as_current_span(name, context=context, kind=kind, links=links, attributes=dict(attributes or {}))


class _Carried:
    """A span that nobody will see: its ids go into logs and to whoever is called, at a sixth of the SDK's cost."""

    __slots__ = ("_parent", "_token")
    _token: Token[Context]

    def __init__(self, parent: str | None) -> None:
        self._parent = parent

    def __enter__(self) -> Span:
        before = _context_of(self._parent) if self._parent else otel.get_current_span().get_span_context()
        if before is None or not before.is_valid:
            before = SpanContext(_IDS.generate_trace_id(), otel.INVALID_SPAN_ID, is_remote=False, trace_flags=_SAMPLED)
        own = SpanContext(before.trace_id, _IDS.generate_span_id(), is_remote=False, trace_flags=before.trace_flags)
        made = NonRecordingSpan(own)
        self._token = attach(set_span_in_context(made))
        return made

    def __exit__(self, *_: object) -> None:
        detach(self._token)


def _context_of(traceparent_: str) -> SpanContext | None:
    """What a well-formed `traceparent` names."""
    if (found := _TRACEPARENT.fullmatch(traceparent_)) is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def light(name: str, *, parent: str, kind: SpanKind, attributes: Callable[[], Attributes]) -> AbstractContextManager[Span]:
    """As `span`; where no span is exported only the parent's context is carried on, at a tenth of the cost."""
    return span(name, parent=parent, kind=kind, attributes=attributes()) if _exports or not parent else carry(parent)


@contextmanager
def carry(parent: str) -> Iterator[Span]:
    """Runs a block in a parent's context, without a span of its own; with "" in none."""
    token = attach(_extracted(parent))
    try:
        yield otel.get_current_span()
    finally:
        detach(token)


@lru_cache(512)  # what was enqueued together has one parent
def _extracted(parent: str) -> Context:
    return _PROPAGATOR.extract({"traceparent": parent}, context=Context())


def fail(current: Span, description: str) -> None:
    """Marks a span as failed."""
    current.set_status(StatusCode.ERROR, description)


def link_to(traceparent_: str | None) -> list[Link]:
    """A link to a caller's span, or none when its context is missing or malformed."""
    if not traceparent_:
        return []
    context = otel.get_current_span(_PROPAGATOR.extract({"traceparent": traceparent_})).get_span_context()
    return [Link(context)] if context.is_valid else []


def traceparent() -> str:
    """The current span's W3C `traceparent`; empty outside any span."""
    context = otel.get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else ""


def current_trace_id() -> str:
    """The current trace id, 32 hex digits; empty outside any span."""
    context = otel.get_current_span().get_span_context()
    return otel.format_trace_id(context.trace_id) if context.is_valid else ""
