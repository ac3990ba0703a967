"""CPU of a small GET by REST against the same call over gRPC, through the same pipeline in one process.

Both listeners speak TLS, as in a hub. The pipeline knows the token (verified once, as in a hub), limits by address and caller, validates,
authorises, traces, counts and records; the handler answers from memory, so that the database does not blur the ratio.
Pairs of rounds are interleaved; the figure is the median of the pairs' ratios of the server process's CPU time.

`python tests/bench/rest_vs_grpc.py` prints one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import aiohttp
import grpc
import uvloop

from kubegems.tenancy.v1 import tenant_pb2, tenant_service_pb2
from libs.clock import SystemClock, new_id
from libs.crypt import signing
from libs.crypt.ca import SPIFFE, Authority
from libs.faults import Fault
from libs.log import trace
from libs.rest import Api, HttpServer
from libs.rpc import Call, Caller, Kind, Pipeline, Scopes, Server, Tls, methods
from services.gateway.edge.buckets import Rate
from services.gateway.edge.limits import RATES, Limits
from services.gateway.identity.keys import Keyring
from services.gateway.identity.tokens import ACCESS_AUDIENCE, Tokens

GOAL = 0.8
PAIRS = 9
CALLS = 600
IN_FLIGHT = 16
_NAME = "tenants/acme"
_SERVICE = tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"]


class _Rights:
    def scopes(self, _permission: str) -> Scopes:
        return Scopes(trees=frozenset({_NAME, "users/dev"}))


class _Keys:
    """One key, where the gateway has a ring of them."""

    def __init__(self, key: signing.SigningKey) -> None:
        self.signing = key
        self.public = {key.kid: key.public}

    async def knows(self, kid: str) -> bool:
        return kid in self.public


class _Tenants:
    """Answers GetTenant from memory; the others are never called."""

    def __init__(self) -> None:
        self._tenant = tenant_pb2.Tenant(name=_NAME, uid="0" * 36, display_name="Acme", description="A team", etag="7", isolated=True)
        self._tenant.create_time.FromDatetime(datetime.now(UTC))
        for method in _SERVICE.methods:
            setattr(self, method.name, self._get)

    async def _get(self, _request: Any, _call: Call) -> tenant_pb2.Tenant:
        return self._tenant


class _Records:
    """Counts reads, as the buffer of the audit does before it flushes."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, _call: Call, _request: Any, _code: str) -> None:
        self.reads += 1

    async def denied(self, call: Call, request: Any, fault: Fault) -> None: ...
    async def failed(self, call: Call, request: Any, fault: Fault) -> None: ...
    async def intent(self, call: Call, request: Any) -> None: ...
    async def outcome(self, call: Call, request: Any, fault: Fault | None) -> None: ...


async def serve(folder: Path) -> None:
    """The server process: tells its ports in one line, then its CPU seconds for each line that it reads."""
    trace.setup("bench", endpoint=None)
    tokens = Tokens(cast("Keyring", _Keys(signing.SigningKey("k", (folder / "key").read_bytes()))), SystemClock())
    rights = _Rights()

    async def authenticate(call: Call) -> Caller:
        claims = await tokens.verify(call.credential, ACCESS_AUDIENCE)
        return Caller(Kind.USER, claims.username, str(claims.uid), str(claims.session), rights)

    free = Rate(1e6, 1e6)
    rates = dict.fromkeys(RATES, free)
    limits = Limits(SystemClock(), per_address=free, per_caller=rates, per_tenant=rates)
    pipeline = Pipeline(methods(_SERVICE, _Tenants()), authenticate=authenticate, limiter=limits, audit=_Records())
    tls = Tls(folder / "gateway.crt", folder / "gateway.key", folder / "ca.crt")
    server, http = Server(pipeline), HttpServer(Api(pipeline))
    grpc_port = server.listen("127.0.0.1:0", tls)
    await server.start()
    rest_port = await http.start("127.0.0.1", 0, tls.context())
    _tell([rest_port, grpc_port])
    while await asyncio.to_thread(sys.stdin.readline):
        _tell(time.process_time())


def _tell(fact: Any) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


async def measure(folder: Path) -> dict[str, Any]:
    """Starts the server, runs the pairs, and returns the figure."""
    key = _prepare(folder)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", str(folder), stdin=pipe, stdout=pipe)
    try:
        rest_port, grpc_port = await _told(process)
        issuer = Tokens(cast("Keyring", _Keys(key)), SystemClock())
        token = issuer.access("dev", new_id(), new_id(), datetime.now(UTC) + timedelta(hours=1)).token
        ca = folder / "ca.crt"
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(ca)))
        async with aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {token}"}) as session:
            credentials = grpc.ssl_channel_credentials(ca.read_bytes())
            async with grpc.aio.secure_channel(f"127.0.0.1:{grpc_port}", credentials) as channel:
                rest, direct = _rest(session, rest_port), _direct(channel, token)
                pairs = [(await _round(process, rest), await _round(process, direct)) for _ in range(PAIRS + 1)][1:]  # the first warms up
    finally:
        process.kill()
        await process.wait()
    ratio = statistics.median(a / b for a, b in pairs)
    what = f"CPU of a GET by REST / by gRPC, same pipeline, TLS: {statistics.median(a for a, _ in pairs):.3f} / "
    what += f"{statistics.median(b for _, b in pairs):.3f} ms"
    return {"bar": "rest_vs_grpc", "ratio": round(ratio, 3), "goal": GOAL, "better": "lower", "samples": len(pairs), "what": what}


def _prepare(folder: Path) -> signing.SigningKey:
    authority, _ = Authority.create("bench", now=datetime.now(UTC))
    (folder / "ca.crt").write_text(authority.certificate)
    uri = f"{SPIFFE}/hub/gateway"
    pair = authority.issue("gateway", now=datetime.now(UTC), lifetime=timedelta(days=1), dns=("localhost",), ips=("127.0.0.1",), uri=uri)
    pair.write(folder, "gateway")
    key = signing.SigningKey.generate("k")
    (folder / "key").write_bytes(key.private)
    return key


def _rest(session: aiohttp.ClientSession, port: int) -> Callable[[], Awaitable[None]]:
    url = f"https://127.0.0.1:{port}/api/v1/{_NAME}"

    async def call() -> None:
        async with session.get(url) as reply:
            assert reply.status == 200
            assert (await reply.json())["name"] == _NAME

    return call


def _direct(channel: grpc.aio.Channel, token: str) -> Callable[[], Awaitable[None]]:
    get: Any = channel.unary_unary(f"/{_SERVICE.full_name}/GetTenant")
    request = tenant_service_pb2.GetTenantRequest(name=_NAME).SerializeToString()
    metadata = (("authorization", f"Bearer {token}"),)

    async def call() -> None:
        assert tenant_pb2.Tenant.FromString(await get(request, metadata=metadata, timeout=10)).name == _NAME

    return call


async def _round(process: asyncio.subprocess.Process, call: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds of the server's CPU per call."""
    before = await _cpu_seconds(process)

    async def lane() -> None:
        for _ in range(CALLS // IN_FLIGHT):
            await call()

    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    return (await _cpu_seconds(process) - before) * 1000 / (CALLS // IN_FLIGHT * IN_FLIGHT)


async def _cpu_seconds(process: asyncio.subprocess.Process) -> float:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    return float(await _told(process))


async def _told(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    return json.loads(await asyncio.wait_for(process.stdout.readline(), 30))


def main() -> None:
    """Serves for the measuring process, or measures."""
    if "--serve" in sys.argv:
        uvloop.run(serve(Path(sys.argv[-1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(uvloop.run(measure(Path(folder)))) + "\n")


if __name__ == "__main__":
    main()
