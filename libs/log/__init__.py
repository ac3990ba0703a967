"""Logs and traces: one structured line per unit of work, one trace per story.

`setup(service)` is called once by libs/run: structlog writes JSON to standard error (pretty on a terminal), each line with the service,
the trace id and what was bound for the request; standard logging of libraries goes the same way from WARNING up.
Traces always exist; they are exported over OTLP/gRPC only when `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Events are
`noun.verb`, constant; facts are fields. Fields whose names speak of secrets are redacted, as a last net.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog
from opentelemetry import trace as otel

from libs.log import trace

__all__ = ["get", "setup", "trace"]

_SECRET_WORDS = ("password", "token", "secret", "authorization", "cookie", "private_key", "kubeconfig")


def get(name: str) -> Any:
    """A logger; bind facts with `.bind()`, write with `.info("noun.verb", fact=…)`."""
    return structlog.get_logger(name)


def setup(service: str, *, level: str = "INFO") -> None:
    """Sets logging and tracing up for the process."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        _redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    pretty = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)  # locals may hold secrets
    renderer: Any = pretty if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for ours in ("libs", "services"):
        logging.getLogger(ours).setLevel(level)
    root.setLevel(max(logging.WARNING, logging.getLogger("libs").level))
    structlog.contextvars.bind_contextvars(service=service)
    trace.setup(service, endpoint=os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


def _add_trace(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    context = otel.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = otel.format_trace_id(context.trace_id)
    return event


def _redact(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    for name in event:
        if any(word in name for word in _SECRET_WORDS) and not name.endswith("_file"):
            event[name] = "[redacted]"
    return event
