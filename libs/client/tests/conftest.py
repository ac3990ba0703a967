"""A hub that is told how to behave, behind a real TLS listener."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from prometheus_client import CollectorRegistry

from kubegems.identity.v1 import session_service_pb2
from kubegems.messages.v1 import event_pb2, message_service_pb2
from kubegems.tenancy.v1 import tenant_pb2, tenant_service_pb2
from libs.client import Client, Retries
from libs.crypt.ca import Authority
from libs.faults import Fault, NotFound, Unauthenticated
from libs.rpc import Caller, Kind, Pipeline, Server, Tls, methods
from libs.rpc.call import Call
from libs.rpc.tests.doubles import All, completed

QUICK = Retries(first=0.01, longest=0.05)


@dataclass
class Hub:
    """What it was asked, and what it answers.

    Attributes:
        tokens: access tokens that are good.
        lifetime: seconds that it says a token lives.
        failures: raised by the next calls, one each.
        keys: idempotency keys that came.
        events: of the stream; a Fault among them breaks it off there, once.
        asked: resume tokens that the stream was opened with.
    """

    tokens: set[str] = field(default_factory=lambda: {"kgk_key"})
    lifetime: float = 600.0
    failures: list[Fault] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    renewals: int = 0

    async def authenticate(self, call: Call) -> Caller:
        if call.credential not in self.tokens:
            raise Unauthenticated("sign in first")
        return Caller(Kind.USER, "dev", "uid", "s", All())

    def _signed_in(self) -> dict[str, Any]:
        token = f"access-{self.renewals}"
        self.tokens.add(token)
        made = session_service_pb2.CreateSessionResponse(access_token=token, refresh_token=f"refresh-{self.renewals}")
        made.session.name = "users/dev/sessions/1"
        made.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=self.lifetime))
        return {"session": made.session, "access_token": token, "refresh_token": made.refresh_token, "expire_time": made.expire_time}

    async def CreateSession(self, request: Any, _call: Call) -> Any:
        if request.password != "right":
            raise Unauthenticated("wrong")
        return session_service_pb2.CreateSessionResponse(**self._signed_in())

    async def RefreshSession(self, request: Any, _call: Call) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        if request.refresh_token != f"refresh-{self.renewals}":
            raise Unauthenticated("used before")
        self.renewals += 1
        return session_service_pb2.RefreshSessionResponse(**self._signed_in())

    async def DeleteSession(self, _request: Any, _call: Call) -> Any:
        self.tokens = {"kgk_key"}
        return Empty()

    async def CreateTenant(self, request: Any, call: Call) -> Any:
        self.keys.append(call.metadata.get("idempotency-key", ""))
        if self.failures:
            raise self.failures.pop(0)
        return tenant_pb2.Tenant(name=f"tenants/{request.tenant_id}")

    async def GetTenant(self, request: Any, call: Call) -> Any:
        self.keys.append(call.metadata.get("idempotency-key", ""))
        if self.failures:
            raise self.failures.pop(0)
        if request.name != "tenants/acme":
            raise NotFound(f"{request.name} does not exist", {"resource_name": request.name})
        return tenant_pb2.Tenant(name=request.name)

    async def ListTenants(self, request: Any, _call: Call) -> Any:
        start = int(request.page_token or 0)
        shown = [tenant_pb2.Tenant(name=f"tenants/t{i}") for i in range(start, min(start + (request.page_size or 50), 7))]
        more = start + len(shown)
        return tenant_service_pb2.ListTenantsResponse(tenants=shown, next_page_token=str(more) if more < 7 else "")

    async def Subscribe(self, request: Any, _call: Call) -> AsyncIterator[Any]:
        self.asked.append(request.resume_token)
        for index, event in enumerate(list(self.events)):
            if index < int(request.resume_token or 0):
                continue
            if isinstance(event, Fault):
                self.events[index] = None
                raise event
            if event is not None:
                yield event_pb2.Event(kind=event_pb2.Event.HEARTBEAT, resume_token=str(index + 1))


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """The hub's certificate, for 127.0.0.1, with its CA."""
    folder = tmp_path_factory.mktemp("client-tls")
    authority = Authority.create("test", now=datetime.now(UTC))[0]
    (folder / "ca.crt").write_text(authority.certificate)
    pair = authority.issue(
        "hub",
        now=datetime.now(UTC),
        lifetime=timedelta(days=1),
        dns=("localhost",),
        ips=("127.0.0.1",),
        uri="spiffe://kubegems/hub/gateway",
    )
    pair.write(folder, "hub")
    return Tls(folder / "hub.crt", folder / "hub.key", Path(folder / "ca.crt"))


@asynccontextmanager
async def _listening(hub: Hub, tls: Tls, port: int = 0) -> AsyncIterator[tuple[Server, int]]:
    files = (session_service_pb2, tenant_service_pb2, message_service_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    served = [m for service in services for m in methods(service, completed(service, hub))]
    server = Server(Pipeline(served, authenticate=hub.authenticate, registry=CollectorRegistry()))
    bound = server.listen(f"127.0.0.1:{port}", tls)
    await server.start()
    try:
        yield server, bound
    finally:
        await server.drain(0)


@pytest.fixture
def serve(tls: Tls) -> Callable[..., Any]:
    """What serves a hub on a port of its own, or a given one, for the length of a block."""
    return lambda hub, port=0: _listening(hub, tls, port)


@pytest.fixture
async def hub(serve: Callable[..., Any], tls: Tls) -> AsyncIterator[tuple[Hub, Callable[..., Client]]]:
    """A hub, and what makes clients of it."""
    made = Hub()
    async with serve(made) as (_, port):
        yield made, lambda **options: Client(f"127.0.0.1:{port}", ca=tls.ca_file, **{"retries": QUICK} | options)
