"""The server under test: our REST in the same process as the handlers, or grpc.aio for Envoy to stand in front of.

`python -m tests.bench.envoy.server '{"folder": …, "side": "rest"}'` tells its port in one line, then its CPU seconds for
each line that it reads.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from libs import audit, log
from libs.clock import SystemClock
from libs.crypt import signing
from libs.faults import Fault
from libs.pg import Database
from libs.pg.paging import Pages
from libs.rest import Api, HttpServer, streams
from libs.rpc import Call, Caller, Kind, Method, Pipeline, Scopes, Server, Tls, methods
from services.gateway import wiring
from services.gateway.edge.buckets import Rate
from services.gateway.edge.limits import RATES, Limits
from services.gateway.identity.keys import Keyring
from services.gateway.identity.tokens import ACCESS_AUDIENCE, Tokens
from services.gateway.tenancy.tenants_api import TenantService
from tests.bench.envoy import answers, protos


@dataclass(frozen=True, slots=True)
class Setting:
    """What a server is.

    Attributes:
        folder: keys, certificates and descriptors.
        side: `rest` or `grpc`.
        bare: the transcoder alone, without the pipeline.
        tls: whether REST speaks TLS (Envoy's own listener does it on the other side).
        database: where tenants are kept; in memory when empty.
        batched: whether events share writes.
        collector: where spans are sent; nowhere when empty.
        profile: file for a profile of the whole run; empty for none.
    """

    folder: str
    side: str
    bare: bool = False
    tls: bool = False
    database: str = ""
    batched: bool = True
    collector: str = ""
    profile: str = ""


class Keys:
    """One key, where the gateway has a ring of them."""

    def __init__(self, key: signing.SigningKey) -> None:
        self.signing = key
        self.public = {key.kid: key.public}

    async def knows(self, kid: str) -> bool:
        """Whether it is ours."""
        return kid in self.public


class Rights:
    """Everything; as trees, which cost more to look through than `everything`, and kept, as the gateway keeps them."""

    _held = Scopes(trees=frozenset({f"tenants/{n}" for n in ("acme", *(f"t{i}" for i in range(16)))} | {"users/dev"}))

    def scopes(self, _permission: str) -> Scopes:
        """Everywhere."""
        return self._held


@dataclass
class Records:
    """Counts reads, as the buffer of the audit does before it flushes."""

    reads: int = 0
    lost: list[str] = field(default_factory=list)

    def read(self, _call: Call, _request: Any, _code: str) -> None:
        """A read."""
        self.reads += 1

    async def denied(self, call: Call, request: Any, fault: Fault) -> None:
        """Not here."""

    async def failed(self, call: Call, request: Any, fault: Fault) -> None:
        """Not here."""

    async def intent(self, call: Call, request: Any) -> None:
        """Not here."""

    async def outcome(self, call: Call, request: Any, fault: Fault | None) -> None:
        """Not here."""


class Bare:
    """Calls the handler and does nothing else, in the place of the pipeline."""

    def __init__(self, served: Iterable[Method]) -> None:
        self.methods = list(served)

    async def unary(self, call: Call, given: Any) -> Any:
        """One call."""
        request = await _read(given)
        return await cast("Any", call.method.handler)(request, call)

    async def stream(self, call: Call, given: Any, *, announce: bool = False) -> AsyncGenerator[Any, None]:
        """One stream."""
        request = await _read(given)
        if announce:
            yield None
        async with aclosing(cast("Any", call.method.handler)(request, call)) as items:
            async for item in items:
                yield item


async def _read(given: Any) -> Any:
    read = given() if callable(given) else given
    return await read if inspect.isawaitable(read) else read


async def _pipeline(setting: Setting) -> Any:
    folder = Path(setting.folder)
    own = protos.bench_service(folder / "descriptors.binpb")
    database = await Database.connect(setting.database, application_name="bench", max_size=12) if setting.database else None
    tenants: Any = answers.Tenants() if database is None else TenantService(Pages(b"p" * 32))
    served = [
        *methods(protos.TENANTS, tenants),
        *methods(protos.ENVIRONMENTS, answers.Environments()),
        *methods(own, answers.Bench(own)),
    ]
    if setting.bare:
        return Bare(served)
    more: dict[str, Any] = {"audit": Records()}
    if database is not None:
        await wiring.migrated(database)
        auditor = audit.Auditor(database, "bench")
        more = {"audit": auditor, "units": audit.PgUnits(database, auditor, key=b"r" * 32)}
    tokens = Tokens(cast("Keyring", Keys(signing.SigningKey("k", (folder / "key").read_bytes()))), SystemClock())
    rights = Rights()

    async def authenticate(call: Call) -> Caller:
        claims = await tokens.verify(call.credential, ACCESS_AUDIENCE)
        return Caller(Kind.USER, claims.username, str(claims.uid), str(claims.session), rights)

    free = Rate(1e7, 1e7)
    rates = dict.fromkeys(RATES, free)
    limits = Limits(SystemClock(), per_address=free, per_caller=rates, per_tenant=rates)
    return Pipeline(served, authenticate=authenticate, limiter=limits, **more)


async def serve(setting: Setting) -> None:
    """Serves until its input ends."""
    log.setup("bench")
    if not setting.batched:
        streams._BATCH, streams.FLUSH_SECONDS = 1, 0.0
    pipeline = await _pipeline(setting)
    folder = Path(setting.folder)
    if setting.side == "rest":
        tls = Tls(folder / "gateway.crt", folder / "gateway.key", folder / "ca.crt").context() if setting.tls else None
        port = await HttpServer(Api(pipeline)).start("127.0.0.1", 0, tls)
    else:
        server = Server(pipeline)
        port = server.listen("127.0.0.1:0", None)
        await server.start()
    _tell(port)
    while await asyncio.to_thread(sys.stdin.readline):
        _tell(time.process_time())


def _tell(fact: Any) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serves, perhaps with a profiler around it."""
    setting = Setting(**json.loads(sys.argv[1]))
    if not setting.profile:
        uvloop.run(serve(setting))
        return
    import cProfile  # noqa: PLC0415 -- only when asked

    with cProfile.Profile() as profile:
        uvloop.run(serve(setting))
    profile.dump_stats(setting.profile)


if __name__ == "__main__":
    main()
