"""Jaeger v2 in memory: takes OTLP over gRPC, answers its query API over HTTP. It has no web page of its own here."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.local.part import Part, until_open
from deploy.local.ports import Ports
from deploy.local.process import Command


class Jaeger:
    """One Jaeger.

    Args:
        folder: its configuration.
        log: its log file.
        ports: gives `otlp`, `jaeger-query`, `jaeger-query-grpc`.
    """

    def __init__(self, folder: Path, log: Path, ports: Ports) -> None:
        self._folder = folder
        self._log = log
        self._otlp, self._query, self._grpc = (ports.take(name) for name in ("otlp", "jaeger-query", "jaeger-query-grpc"))
        self.binary = Path()  # set once it is built

    @property
    def url(self) -> str:
        """Where traces are asked for: `<url>/api/traces/{trace id}`."""
        return f"http://127.0.0.1:{self._query}"

    @property
    def otlp(self) -> str:
        """Where spans are sent."""
        return f"http://127.0.0.1:{self._otlp}"

    def part(self) -> Part:
        """The part for the starter."""
        return Part("jaeger", self._command, lambda: until_open(self._query), self._prepare)

    async def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration = {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 50_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": f"127.0.0.1:{self._query}"},
                    "grpc": {"endpoint": f"127.0.0.1:{self._grpc}"},
                },
            },
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{self._otlp}"}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        }
        (self._folder / "jaeger.yaml").write_text(json.dumps(configuration, indent=1))  # YAML is a superset of JSON

    def _command(self) -> Command:
        return Command((str(self.binary), "--config", str(self._folder / "jaeger.yaml")), self._log, patience=10)
