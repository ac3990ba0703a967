"""Forwarding over mTLS: the gateway decides, the owner believes the gateway and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kubegems.messages.v1 import event_pb2, message_service_pb2, message_service_pb2_grpc
from kubegems.tenancy.v1 import tenant_pb2, tenant_service_pb2_grpc
from kubegems.tenancy.v1 import tenant_service_pb2 as pb
from libs.clock import SystemClock
from libs.crypt.signing import SigningKey
from libs.faults import Code, NotFound
from libs.rpc import Call, Caller, Channel, Kind, Pipeline, Scopes, Tls, batches, methods
from libs.rpc import context as contexts
from libs.rpc.authorisation import granted
from libs.rpc.forward import forward
from libs.rpc.tests.doubles import MESSAGES, TENANTS, All, Messages, Records, Rights, Tenants, Users, refused
from libs.rpc.tests.test_grpc import serving

KEY = SigningKey.generate("k1")
OTHER = SigningKey.generate("k2")


class Inner:
    """An inner service named `msgbus`, and what it was asked."""

    def __init__(self) -> None:
        self.tenants, self.messages = Tenants(), Messages()
        self.fetched = 0
        self.keys = {KEY.kid: KEY.public}
        self.calls: list[Call] = []

    async def fetch(self) -> Mapping[str, bytes]:
        self.fetched += 1
        return dict(self.keys)

    def pipeline(self) -> Pipeline:
        served = [*methods(TENANTS, self.tenants), *methods(MESSAGES, self.messages)]
        believed = contexts.CallerContexts("msgbus", self.fetch)

        async def seen(call: Call) -> Caller:
            self.calls.append(call)
            return await believed(call)

        return Pipeline(served, authenticate=seen, authorise=granted, registry=CollectorRegistry())


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
async def target(inner: Inner, certificates: Callable[..., Tls]) -> AsyncIterator[str]:
    async with serving(inner.pipeline(), certificates("msgbus"), require_client=True) as (_, where):
        yield where


@pytest.fixture
async def gateway(target: str, certificates: Callable[..., Tls]) -> AsyncIterator[tuple[Channel, Records]]:
    """A client of a gateway that forwards both services."""
    to_inner, users, records = Channel(target, "msgbus", certificates("gateway")), Users(), Records()
    users.known["dev"] = Rights(tenancy_tenants_get=Scopes(exact=frozenset({"tenants/acme"})))
    served = [m for s in (TENANTS, MESSAGES) for m in forward(s, to_inner, lambda: KEY, SystemClock())]
    async with serving(Pipeline(served, authenticate=users, audit=records, registry=CollectorRegistry())) as (_, where):
        client = Channel(where, "gateway", None)
        yield client, records
        await client.close()
    await to_inner.close()


async def test_a_unary_call_is_forwarded_as_its_caller(gateway: Any, inner: Inner) -> None:
    """The owner sees user, session, address and the one permission's scopes; the gateway keeps no record of its own."""
    client, records = gateway
    stub = client.stub(tenant_service_pb2_grpc.TenantServiceStub)
    reply = await stub.GetTenant(pb.GetTenantRequest(name="tenants/acme"), metadata=(("authorization", "Bearer dev"),))
    assert reply == tenant_pb2.Tenant(name="tenants/acme", display_name="Acme", etag="7")
    call = inner.calls[0]
    assert (call.caller.name, call.caller.uid, call.caller.session, call.address) == ("users/dev", "uid-dev", "session-1", "127.0.0.1")
    assert call.caller.rights.scopes("tenancy.tenants.get").covers("tenants/acme")
    assert call.caller.rights.scopes("tenancy.tenants.delete").empty
    assert records.log == []


async def test_the_gateway_refuses_before_it_forwards(gateway: Any, inner: Inner) -> None:
    """A denial is the gateway's, recorded there; the owner is not asked."""
    client, records = gateway
    stub = client.stub(tenant_service_pb2_grpc.TenantServiceStub)
    with refused(Code.NOT_FOUND):
        await stub.GetTenant(pb.GetTenantRequest(name="tenants/globex"), metadata=(("authorization", "Bearer dev"),))
    assert inner.calls == []
    assert records.log == [("read", "NOT_FOUND")]


async def test_the_owners_fault_comes_through(gateway: Any, inner: Inner) -> None:
    """Code, reason and message are the owner's, and so is the record."""
    client, records = gateway
    inner.tenants.raises = NotFound("tenants/acme does not exist", {"resource": "tenants/acme"})
    stub = client.stub(tenant_service_pb2_grpc.TenantServiceStub)
    with refused(Code.NOT_FOUND, "tenants/acme does not exist"):
        await stub.GetTenant(pb.GetTenantRequest(name="tenants/acme"), metadata=(("authorization", "Bearer admin"),))
    assert records.log == []


async def test_a_stream_is_forwarded_live_and_closed(gateway: Any, inner: Inner) -> None:
    """Events pass as they come; when the client goes, the owner's handler ends within a second."""
    client, _ = gateway
    stub = client.stub(message_service_pb2_grpc.MessageServiceStub)
    events: Any = stub.Subscribe(message_service_pb2.SubscribeRequest(), metadata=(("authorization", "Bearer admin"),))
    for scope in ("one", "two"):
        inner.messages.events.put_nowait(event_pb2.Event(scope=scope))
        assert (await asyncio.wait_for(anext(events), 2)).scope == scope
    await events.aclose()
    await asyncio.wait_for(inner.messages.closed.wait(), 1)


async def test_what_is_yielded_together_travels_together_and_reaches_callers_one_by_one(
    target: str, gateway: Any, inner: Inner, certificates: Callable[..., Tls]
) -> None:
    """The hub's own hop carries a list as one message; a public caller gets single events, also one who claims to take batches."""
    together: Any = [event_pb2.Event(scope=scope) for scope in ("one", "two", "three")]
    client, _ = gateway
    stub = client.stub(message_service_pb2_grpc.MessageServiceStub)
    metadata = (("authorization", "Bearer admin"), batches.TAKEN)
    events: Any = stub.Subscribe(message_service_pb2.SubscribeRequest(), metadata=metadata)
    inner.messages.events.put_nowait(together)
    assert [(await asyncio.wait_for(anext(events), 2)).scope for _ in together] == ["one", "two", "three"]
    await events.aclose()
    await asyncio.wait_for(inner.messages.closed.wait(), 1)
    to_inner = Channel(target, "msgbus", certificates("gateway"))
    call = inner.messages.calls[0]
    token = contexts.sign(KEY, Call(call.method, caller=call.caller), "msgbus", now=SystemClock().now())
    raw: Any = to_inner.unary_stream(call.method.path)(b"", metadata=((contexts.HEADER, token), batches.TAKEN))
    inner.messages.events.put_nowait(together)
    inner.messages.events.put_nowait(event_pb2.Event(scope="alone"))
    found = [batches.unpacked(await asyncio.wait_for(anext(raw), 2)) for _ in range(2)]
    assert found == [[event.SerializeToString() for event in together], event_pb2.Event(scope="alone").SerializeToString()]
    await raw.aclose()
    await to_inner.close()


def test_a_batch_is_of_bounded_size() -> None:
    """What is more goes into further messages; nothing is lost and the order stays."""
    items = [bytes([65 + n]) * 100_000 for n in range(6)]
    messages = list(batches.packed(items))
    assert len(messages) == 3
    assert [item for message in messages for item in batches.each(batches.unpacked(message))] == items
    assert list(batches.packed([])) == []


async def test_an_owner_that_is_away_is_the_gateways_to_record(certificates: Callable[..., Tls]) -> None:
    """UNAVAILABLE with a delay, and a record here, since nobody else has one."""
    to_nowhere, records = Channel("127.0.0.1:1", "msgbus", certificates("gateway")), Records()
    served = forward(TENANTS, to_nowhere, lambda: KEY, SystemClock())
    pipeline = Pipeline(served, authenticate=Users(), audit=records, registry=CollectorRegistry())
    method = pipeline.method("/kubegems.tenancy.v1.TenantService/DeleteTenant")
    assert method is not None
    with refused(Code.UNAVAILABLE, "msgbus is away") as caught:
        await pipeline.unary(Call(method, credential="admin"), pb.DeleteTenantRequest(name="tenants/a"))
    assert caught.value.retry_after is not None
    assert records.log == [("failed", "UNAVAILABLE")]
    await to_nowhere.close()


def _token(key: SigningKey = KEY, audience: str = "msgbus", rpc: str = "GetTenant", ago: timedelta = timedelta()) -> str:
    method = next(m for m in methods(TENANTS, Tenants()) if m.descriptor.name == rpc)
    call = Call(method, caller=Caller(Kind.USER, "dev", "u", "s", All()))
    return contexts.sign(key, call, audience, now=datetime.now(UTC) - ago)


@pytest.mark.parametrize(
    ("token", "service"),
    [
        (_token(audience="worker"), "gateway"),
        (_token(rpc="DeleteTenant"), "gateway"),
        (_token(ago=timedelta(seconds=70)), "gateway"),
        (_token(OTHER), "gateway"),
        ("", "gateway"),
        (_token(), "worker"),
    ],
    ids=["audience", "method", "expired", "unknown key", "none", "peer"],
)
async def test_a_context_that_is_not_for_this_call_is_refused(
    target: str, certificates: Callable[..., Tls], inner: Inner, token: str, service: str
) -> None:
    """Wrong audience, method, time, key or peer: UNAUTHENTICATED; the same token from the gateway would do."""
    channel = Channel(target, "msgbus", certificates(service))
    stub = channel.stub(tenant_service_pb2_grpc.TenantServiceStub)
    request = pb.GetTenantRequest(name="tenants/a")
    with refused(Code.UNAUTHENTICATED):
        await stub.GetTenant(request, metadata=((contexts.HEADER, token),))
    assert not inner.tenants.asked
    await channel.close()


async def test_a_good_context_is_believed_and_keys_are_fetched_once(
    target: str, certificates: Callable[..., Tls], inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control of the refusals; the second call needs no fetch, and a flood of unknown ids no more than one per interval."""
    monkeypatch.setattr(contexts, "_REFRESH_SECONDS", 30.0)
    channel = Channel(target, "msgbus", certificates("gateway"))
    stub = channel.stub(tenant_service_pb2_grpc.TenantServiceStub)
    for _ in range(2):
        assert await stub.GetTenant(pb.GetTenantRequest(name="tenants/a"), metadata=((contexts.HEADER, _token()),))
    for _ in range(3):
        with refused(Code.UNAUTHENTICATED):
            await stub.GetTenant(pb.GetTenantRequest(name="tenants/a"), metadata=((contexts.HEADER, _token(OTHER)),))
    assert inner.fetched == 1
    await channel.close()


def test_a_context_with_many_scopes_fits() -> None:
    """A user of 400 projects still has a context under 64 KiB."""
    method = methods(TENANTS, Tenants())[1]
    rights = Rights(tenancy_tenants_get=Scopes(trees=frozenset(f"tenants/tenant-{i}/projects/project-number-{i}" for i in range(400))))
    call = Call(method, caller=Caller(Kind.USER, "dev", "u", "s", rights))
    assert len(contexts.sign(KEY, call, "msgbus", now=datetime.now(UTC))) < 64 * 1024
