"""Doubles of what the pipeline asks for, for the tests here and beside the REST side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from kubegems.messages.v1 import event_pb2, message_service_pb2
from kubegems.tenancy.v1 import tenant_pb2, tenant_service_pb2
from libs.faults import Code, Fault, Unauthenticated
from libs.rpc import Call, Caller, Kind, Scopes

TENANTS = tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"]
MESSAGES = message_service_pb2.DESCRIPTOR.services_by_name["MessageService"]


def completed(service: Any, servicer: Any) -> Any:
    """The same servicer, with an empty answer to every unary RPC, and an empty stream for every other, that it lacks."""
    for rpc in service.methods:
        if not hasattr(servicer, rpc.name):
            setattr(servicer, rpc.name, _empty(rpc))
    return servicer


def _empty(rpc: Any) -> Any:
    async def unary(_request: Any, _call: Call) -> Any:
        return GetMessageClass(rpc.output_type)()

    async def stream(_request: Any, _call: Call) -> AsyncIterator[Any]:
        return
        yield

    return stream if rpc.server_streaming else unary


class Rights:
    """Rights by permission."""

    def __init__(self, **held: Scopes) -> None:
        self._held = {name.replace("_", "."): scopes for name, scopes in held.items()}

    def scopes(self, permission: str) -> Scopes:
        return self._held.get(permission, Scopes())


EVERYTHING = Scopes(everything=True)


class All:
    """Every right."""

    def scopes(self, _permission: str) -> Scopes:
        return EVERYTHING


@dataclass
class Users:
    """Signs callers in by the token that is their name."""

    known: dict[str, Any] = field(default_factory=lambda: {"admin": All()})

    async def __call__(self, call: Call) -> Caller:
        if call.credential not in self.known:
            raise Unauthenticated("who are you?")
        return Caller(Kind.USER, call.credential, "uid-" + call.credential, "session-1", self.known[call.credential])


class Unit:
    """A transaction that tells what became of it."""

    def __init__(self, log: list[str], answers: dict[str, Any]) -> None:
        self.log, self.answers = log, answers

    async def begin(self, _call: Call) -> Any:
        self.log.append("begin")
        return object()

    async def replay(self, _call: Call, request: Any) -> Any:
        return self.answers.get(getattr(request, "request_id", "") or "-")

    async def commit(self, _call: Call, request: Any, reply: Any) -> None:
        self.log.append("commit")
        if request_id := getattr(request, "request_id", ""):
            self.answers[request_id] = reply

    async def rollback(self) -> None:
        self.log.append("rollback")


@dataclass
class Units:
    """Makes units that share one log."""

    log: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def open(self, _call: Call) -> Unit:
        return Unit(self.log, self.answers)


@dataclass
class Records:
    """Keeps what it was asked to record."""

    log: list[tuple[str, str]] = field(default_factory=list)
    broken: bool = False

    async def denied(self, _call: Call, _request: Any, fault: Fault) -> None:
        self.log.append(("denied", fault.code.name))

    async def failed(self, _call: Call, _request: Any, fault: Fault) -> None:
        self.log.append(("failed", fault.code.name))

    async def intent(self, _call: Call, _request: Any) -> None:
        if self.broken:
            raise ConnectionError("no audit")
        self.log.append(("intent", ""))

    async def outcome(self, _call: Call, _request: Any, fault: Fault | None) -> None:
        self.log.append(("outcome", fault.code.name if fault else "OK"))

    def read(self, _call: Call, _request: Any, code: str) -> None:
        self.log.append(("read", code))


class Tenants:
    """Answers as told."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.raises: BaseException | None = None
        self.wait: asyncio.Event | None = None
        self.cancelled = asyncio.Event()
        completed(TENANTS, self)

    async def _answer(self, request: Any, name: str) -> tenant_pb2.Tenant:
        self.asked.append(request)
        if self.raises is not None:
            raise self.raises
        if self.wait is not None:
            try:
                await self.wait.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return tenant_pb2.Tenant(name=name, display_name="Acme", etag="7")

    async def CreateTenant(self, request: Any, call: Call) -> tenant_pb2.Tenant:
        return await self._answer(request, f"tenants/{request.tenant_id}")

    async def GetTenant(self, request: Any, call: Call) -> tenant_pb2.Tenant:
        return await self._answer(request, request.name)

    async def ListTenants(self, request: Any, call: Call) -> tenant_service_pb2.ListTenantsResponse:
        return tenant_service_pb2.ListTenantsResponse(tenants=[await self._answer(request, "tenants/acme")])

    async def UpdateTenant(self, request: Any, call: Call) -> tenant_pb2.Tenant:
        return await self._answer(request, request.tenant.name)

    async def DeleteTenant(self, request: Any, call: Call) -> tenant_pb2.Tenant:
        return await self._answer(request, request.name)

    async def SuspendTenant(self, request: Any, call: Call) -> tenant_pb2.Tenant:
        return await self._answer(request, request.name)

    async def ResumeTenant(self, request: Any, call: Call) -> tenant_pb2.Tenant:
        return await self._answer(request, request.name)


class Messages:
    """Streams what is put into it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[event_pb2.Event | list[event_pb2.Event] | BaseException | None] = asyncio.Queue()
        self.calls: list[Call] = []
        self.requests: list[Any] = []
        self.closed = asyncio.Event()
        completed(MESSAGES, self)

    async def Subscribe(self, request: Any, call: Call) -> AsyncIterator[event_pb2.Event | list[event_pb2.Event]]:
        self.calls.append(call)
        self.requests.append(request)
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.closed.set()


@contextmanager
def refused(code: Code, *words: str) -> Iterator[pytest.ExceptionInfo[Fault]]:
    """The block ends with a fault of this code whose message holds these words."""
    with pytest.raises(Fault) as caught:
        yield caught
    assert caught.value.code is code, caught.value
    for word in words:
        assert word in str(caught.value)
