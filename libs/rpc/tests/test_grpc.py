"""Server and channel over real sockets: TLS, health, reflection, errors, deadlines, streams, drain."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2  # noqa: F401 -- RetryInfo's field type must be in the pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from kubegems.identity.v1 import access_service_pb2, access_service_pb2_grpc
from kubegems.messages.v1 import event_pb2, message_service_pb2, message_service_pb2_grpc
from kubegems.tenancy.v1 import tenant_service_pb2 as pb
from kubegems.tenancy.v1 import tenant_service_pb2_grpc
from libs.faults import Code, Exhausted, Invalid, NotFound, Unavailable, Violation
from libs.log import trace
from libs.rpc import Channel, Pipeline, Server, Tls, for_services, methods, metrics
from libs.rpc.tests.doubles import MESSAGES, TENANTS, Messages, Tenants, Users, completed, refused
from tests.kit.eventually import eventually

ACCESS = access_service_pb2.DESCRIPTOR.services_by_name["AccessService"]
ADMIN = (("authorization", "Bearer admin"),)


class Access:
    """Says who asked."""

    async def ListCallerKeys(self, request: Any, call: Any) -> Any:
        return access_service_pb2.ListCallerKeysResponse(keys=[access_service_pb2.CallerKey(kid=call.caller.name)])

    async def CheckAccess(self, request: Any, call: Any) -> Any:
        return access_service_pb2.CheckAccessResponse()

    async def WatchGrants(self, request: Any, call: Any) -> AsyncIterator[Any]:
        yield access_service_pb2.WatchGrantsResponse()


@asynccontextmanager
async def serving(
    pipeline: Pipeline, tls: Tls | None = None, *, require_client: bool = False, served: Any = None
) -> AsyncIterator[tuple[Server, str]]:
    """A server on a free port."""
    server = Server(pipeline, served)
    port = server.listen("127.0.0.1:0", tls, require_client=require_client)
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.drain(0.1)


class Here:
    """A server with doubles and a channel to it."""

    def __init__(self, channel: Channel, target: str, server: Server, tenants: Tenants, messages: Messages) -> None:
        self.channel, self.target, self.server, self.tenants, self.messages = channel, target, server, tenants, messages
        self.stub = channel.stub(tenant_service_pb2_grpc.TenantServiceStub)
        self.subscribe = channel.stub(message_service_pb2_grpc.MessageServiceStub).Subscribe


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    tenants, messages = Tenants(), Messages()
    served = [*methods(TENANTS, tenants), *methods(MESSAGES, messages)]
    pipeline = Pipeline(served, authenticate=Users(), registry=CollectorRegistry())
    async with serving(pipeline) as (server, target):
        channel = Channel(target, "gateway", None)
        yield Here(channel, target, server, tenants, messages)
        await channel.close()


async def test_a_call_goes_through(here: Here) -> None:
    """Bytes in, handler, bytes out."""
    reply = await here.stub.GetTenant(pb.GetTenantRequest(name="tenants/acme"), metadata=ADMIN)
    assert reply.display_name == "Acme"


@pytest.mark.parametrize("spread", [True, False])
async def test_calls_go_round_the_replicas_or_keep_to_one(spread: bool) -> None:
    """Who keeps to one does so while that lasts, also for calls beside a stream, and is answered by another after its end."""
    reached: list[Tenants] = []
    async with AsyncExitStack() as stack:
        replicas = [Tenants(), Tenants()]
        served = [Pipeline(methods(TENANTS, one), authenticate=Users(), registry=CollectorRegistry()) for one in replicas]
        servers = [await stack.enter_async_context(serving(pipeline)) for pipeline in served]
        channel = Channel(",".join(target for _, target in servers), "gateway", None, spread=spread)
        stack.push_async_callback(channel.close)
        get = channel.stub(tenant_service_pb2_grpc.TenantServiceStub).GetTenant

        async def ask() -> None:
            before = [len(one.asked) for one in replicas]
            try:
                await get(pb.GetTenantRequest(name="tenants/acme"), metadata=ADMIN)
            except Unavailable as error:  # the connection has just ended
                raise AssertionError(repr(error)) from error
            reached.extend(one for one, count in zip(replicas, before, strict=True) if len(one.asked) > count)

        async def both() -> bool:
            await ask()
            return len(set(map(id, reached))) == 2

        if spread:
            await eventually(both, within=10)
            return
        for _ in range(10):
            await ask()
        assert len(set(map(id, reached))) == 1
        await servers[replicas.index(reached[0])][0].drain(0.1)
        await eventually(both, within=10)


async def test_every_call_is_counted_by_method_and_outcome() -> None:
    """Calls by code and transport, their time, and how many are open; streams give no time."""
    registry, messages = CollectorRegistry(), Messages()
    pipeline = Pipeline([*methods(TENANTS, Tenants()), *methods(MESSAGES, messages)], authenticate=Users(), registry=registry)
    messages.events.put_nowait(None)
    get, subscribe = "/kubegems.tenancy.v1.TenantService/GetTenant", "/kubegems.messages.v1.MessageService/Subscribe"
    async with serving(pipeline) as (_, target):
        channel = Channel(target, "gateway", None)
        stub = channel.stub(tenant_service_pb2_grpc.TenantServiceStub)
        await stub.GetTenant(pb.GetTenantRequest(name="tenants/acme"), metadata=ADMIN)
        with refused(Code.UNAUTHENTICATED):
            await stub.GetTenant(pb.GetTenantRequest(name="tenants/acme"))
        async for _event in channel.stub(message_service_pb2_grpc.MessageServiceStub).Subscribe(
            message_service_pb2.SubscribeRequest(), metadata=ADMIN
        ):
            pass
        await channel.close()

    def figure(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0.0

    for method, code in ((get, "OK"), (get, "UNAUTHENTICATED"), (subscribe, "OK")):
        assert figure("kubegems_rpc_calls_total", method=method, code=code, transport="grpc") == 1
    assert (figure("kubegems_rpc_seconds_count", method=get), figure("kubegems_rpc_seconds_count", method=subscribe)) == (2, 0)
    assert figure("kubegems_rpc_open", method=get) == figure("kubegems_rpc_open", method=subscribe) == 0


async def test_answers_carry_request_and_trace_id(here: Here) -> None:
    """Each answer names its request and its trace, also a refusal."""
    trace.setup("test", endpoint=None)
    async with grpc.aio.insecure_channel(here.target) as plain:
        get: Any = plain.unary_unary("/kubegems.tenancy.v1.TenantService/GetTenant")
        call: Any = get(pb.GetTenantRequest(name="tenants/a").SerializeToString(), metadata=ADMIN)
        await call
        trailing = dict(await call.trailing_metadata())
        assert len(trailing["kubegems-request-id"]) == 32
        assert len(trailing["kubegems-trace-id"]) == 32


@pytest.mark.parametrize(
    "fault",
    [
        Invalid.fields([Violation("tenant.name", "is bad"), Violation("x", "is worse")]),
        Exhausted("too often", retry_after=timedelta(seconds=2.5)),
        NotFound("tenants/a does not exist", {"resource_name": "tenants/a"}),
    ],
)
async def test_faults_come_back_whole(here: Here, fault: Any) -> None:
    """Code, reason, message, metadata, violations and delay survive the wire."""
    here.tenants.raises = fault
    with refused(fault.code) as caught:
        await here.stub.GetTenant(pb.GetTenantRequest(name="tenants/a"), metadata=ADMIN)
    got = caught.value
    assert (got.message, got.reason, got.violations, got.retry_after) == (fault.message, fault.reason, fault.violations, fault.retry_after)
    assert fault.metadata.items() <= got.metadata.items()


async def test_bytes_that_are_no_message_are_invalid(here: Here) -> None:
    """Garbage is the client's mistake, not ours."""
    async with grpc.aio.insecure_channel(here.target) as plain:
        get: Any = plain.unary_unary("/kubegems.tenancy.v1.TenantService/GetTenant")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(b"\xff\xff", metadata=ADMIN)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_clients_deadline_reaches_the_handler(here: Here) -> None:
    """The handler is cancelled when the client's time is up."""
    here.tenants.wait = asyncio.Event()
    with refused(Code.DEADLINE_EXCEEDED):
        await here.stub.GetTenant(pb.GetTenantRequest(name="tenants/a"), timeout=0.1, metadata=ADMIN)
    await asyncio.wait_for(here.tenants.cancelled.wait(), 1)


async def test_a_stream_is_live_and_ends_with_its_reader(here: Here) -> None:
    """Each event arrives when it is sent; a reader that goes closes the handler within a second."""
    events = here.subscribe(message_service_pb2.SubscribeRequest(), metadata=ADMIN)
    for scope in ("one", "two"):
        here.messages.events.put_nowait(event_pb2.Event(scope=scope))
        assert (await asyncio.wait_for(anext(aiter(events)), 1)).scope == scope
    await events.aclose()  # type: ignore[attr-defined] # an async generator at run time
    await asyncio.wait_for(here.messages.closed.wait(), 1)


async def test_a_stream_ends_with_its_fault(here: Here) -> None:
    """A fault in the middle of a stream comes after the events before it."""
    here.messages.events.put_nowait(event_pb2.Event(scope="one"))
    here.messages.events.put_nowait(NotFound("gone"))
    seen = []
    with refused(Code.NOT_FOUND, "gone"):
        async for event in here.subscribe(message_service_pb2.SubscribeRequest(), metadata=ADMIN):
            seen.append(event.scope)
    assert seen == ["one"]


async def test_health_and_reflection(here: Here) -> None:
    """Health tells each service, and NOT_SERVING while draining; reflection lists what is served here."""
    async with grpc.aio.insecure_channel(here.target) as plain:
        stub: Any = health_pb2_grpc.HealthStub(plain)
        for service in ("", "kubegems.tenancy.v1.TenantService"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == health_pb2.HealthCheckResponse.SERVING
        reflected: Any = reflection_pb2_grpc.ServerReflectionStub(plain).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = {s.name for s in (await reflected.read()).list_services_response.service}
        assert {"kubegems.tenancy.v1.TenantService", "grpc.health.v1.Health"} <= names
        await here.server.health.enter_graceful_shutdown()
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_drain_lets_calls_end(here: Here) -> None:
    """A call under way is answered; a new one is refused."""
    here.tenants.wait = asyncio.Event()
    call = asyncio.ensure_future(here.stub.GetTenant(pb.GetTenantRequest(name="tenants/a"), metadata=ADMIN))
    while not here.tenants.asked:
        await asyncio.sleep(0.001)
    draining = asyncio.create_task(here.server.drain(5), name="drain")
    await asyncio.sleep(0)
    here.tenants.wait.set()
    assert (await call).name == "tenants/a"
    await draining
    with refused(Code.UNAVAILABLE, "gateway is away"):
        await here.stub.GetTenant(pb.GetTenantRequest(name="tenants/a"), metadata=ADMIN)


async def test_internal_methods_ask_for_a_hub_certificate(certificates: Callable[..., Tls]) -> None:
    """Over mTLS a service is known by its SPIFFE name; an agent's certificate of the same CA is refused, as is none."""
    pipeline = Pipeline(methods(ACCESS, completed(ACCESS, Access())), registry=CollectorRegistry())
    async with serving(pipeline, certificates("gateway"), require_client=True, served=for_services(pipeline.methods)) as (_, target):
        request = access_service_pb2.ListCallerKeysRequest()
        worker = Channel(target, "gateway", certificates("worker"))
        assert (await worker.stub(access_service_pb2_grpc.AccessServiceStub).ListCallerKeys(request)).keys[0].kid == "services/worker"
        agent = Channel(target, "gateway", certificates("agent", "spiffe://kubegems/cluster/c1"))
        with refused(Code.UNAUTHENTICATED):
            await agent.stub(access_service_pb2_grpc.AccessServiceStub).ListCallerKeys(request)
        tls = certificates("worker")
        nobody = grpc.aio.secure_channel(
            target, grpc.ssl_channel_credentials(tls.ca_file.read_bytes()), [("grpc.ssl_target_name_override", "localhost")]
        )
        list_keys: Any = nobody.unary_unary("/kubegems.identity.v1.AccessService/ListCallerKeys")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await list_keys(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for channel in (worker, agent, nobody):
            await channel.close()


async def test_a_bearer_token_is_no_certificate() -> None:
    """A SPIFFE name sent as a token proves nothing."""
    pipeline = Pipeline(methods(ACCESS, completed(ACCESS, Access())), registry=CollectorRegistry())
    async with serving(pipeline) as (_, target):
        channel = Channel(target, "gateway", None)
        stub = channel.stub(access_service_pb2_grpc.AccessServiceStub)
        with refused(Code.UNAUTHENTICATED):
            await stub.ListCallerKeys(
                access_service_pb2.ListCallerKeysRequest(), metadata=(("authorization", "Bearer spiffe://kubegems/hub/gateway"),)
            )
        await channel.close()


async def test_metrics_are_served_on_loopback() -> None:
    """The process's figures can be read over HTTP."""
    stop = metrics.serve("127.0.0.1", port := _free_port())
    try:
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read())
        assert b"python_info" in text
    finally:
        stop()


def _free_port() -> int:
    import socket  # noqa: PLC0415 -- for this test only

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
