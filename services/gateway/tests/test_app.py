"""The whole gateway on a real PostgreSQL and a real NATS: listeners, who may come in where, probes, drain."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from kubegems.identity.v1 import access_service_pb2, session_service_pb2
from kubegems.identity.v1.access_service_pb2_grpc import AccessServiceStub
from libs import rpc
from tests.kit.data import FreshDatabase
from tests.kit.gateway import PASSWORD, Gateway, configuration, running
from tests.kit.nats import NatsServer
from tests.kit.rest import User


@pytest.fixture(scope="module")
async def gateway(
    database: FreshDatabase,
    nats_server: NatsServer,
    hub_certificates: Certificates,
    free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    async with running(configuration(folder, database, nats_server, hub_certificates, free_ports)) as made:
        yield made


async def test_a_user_signs_in_and_works(gateway: Gateway) -> None:
    """REST end to end: sign in as the first admin, make a user and a tenant, read them back, and find it in the audit."""
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    name = f"t{secrets.token_hex(4)}"
    made = await admin.call("POST", "/tenants", {"tenantId": name, "tenant": {"displayName": "Acme"}})
    assert made.ok()["displayName"] == "Acme"
    assert (await admin.call("GET", f"/tenants/{name}")).headers.get("Etag")
    assert (await admin.get("/users/me"))["name"] == "users/admin"
    events = (await admin.get("/audit/events"))["auditEvents"]
    assert [e["outcome"] for e in events if e["method"].endswith("/CreateTenant")] == ["OK"]
    assert PASSWORD not in str(events)


async def test_strangers_and_mistakes(gateway: Gateway) -> None:
    """No token, a wrong password and a wrong field get their codes."""
    assert (await gateway.nobody.call("GET", "/tenants")).status == 401
    assert (await gateway.nobody.call("POST", "/sessions", {"username": "admin", "password": "wrong wrong wrong"})).status == 401
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    refused = await admin.call("POST", "/tenants", {"tenantId": "Acme", "tenat": {}})
    assert (refused.status, set(refused.fields)) == (400, {"tenat", "tenant_id"})


async def test_a_forwarded_service_that_is_away_is_unavailable(gateway: Gateway) -> None:
    """Jobs belong to the worker; without it the gateway says when to come back."""
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    answer = await admin.call("GET", "/jobs")
    assert answer.status == 503
    assert "worker is away" in answer.body["error"]["message"]
    assert answer.headers["Retry-After"] == "1"


async def test_probes_and_keys(gateway: Gateway) -> None:
    """Everyone may ask whether it lives, whether it is ready, and for the keys of access tokens."""
    assert (await gateway.nobody.get("//healthz")) == {"status": "ok"}
    ready = await gateway.nobody.get("//readyz")
    assert ready == {"status": "ready", "parts": {"nats": "ok", "database": "ok"}}
    keys = (await gateway.nobody.get("//.well-known/jwks.json"))["keys"]
    assert {key["alg"] for key in keys} == {"EdDSA"}
    assert all(set(key) == {"kty", "crv", "kid", "x", "use", "alg"} for key in keys)


async def _services(channel: grpc.aio.Channel) -> set[str]:
    reflected: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    found = (await reflected.read()).list_services_response.service
    return {s.name.removeprefix("kubegems.") for s in found if s.name.startswith("kubegems.")}


async def test_each_listener_serves_its_own(gateway: Gateway) -> None:
    """Public gRPC has no internal method; enrolment has its own; internal ones need a hub certificate."""
    async with gateway.plain(gateway.config.grpc_address) as public, gateway.plain(gateway.config.enrolment_address) as enrolment:
        services = await _services(public)
        assert {"tenancy.v1.TenantService", "messages.v1.MessageService", "jobs.v1.JobService"} <= services
        assert not services & {"identity.v1.AccessService", "fleet.v1.EnrolmentService", "fleet.v1.ClusterAccessService"}
        assert await _services(enrolment) == {"fleet.v1.EnrolmentService"}
        for channel in (public, enrolment):
            ask: Any = channel.unary_unary("/kubegems.identity.v1.AccessService/ListCallerKeys")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(b"")
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        health: Any = health_pb2_grpc.HealthStub(public)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    worker = rpc.Channel(gateway.config.internal_address, "gateway", gateway.tls())
    keys = await worker.stub(AccessServiceStub).ListCallerKeys(access_service_pb2.ListCallerKeysRequest())
    assert keys.keys
    await worker.close()


async def test_grpc_speaks_the_same(gateway: Gateway) -> None:
    """The same sign-in over gRPC, with a token that REST takes."""
    async with gateway.plain(gateway.config.grpc_address) as public:
        sign_in: Any = public.unary_unary("/kubegems.identity.v1.SessionService/CreateSession")
        request = session_service_pb2.CreateSessionRequest(username="admin", password=PASSWORD)
        reply = session_service_pb2.CreateSessionResponse.FromString(await sign_in(request.SerializeToString()))
    user = User(gateway.nobody.base, gateway.nobody.tls, gateway.nobody.session, reply.access_token)
    assert (await user.get("/users/me"))["name"] == "users/admin"


async def test_an_unknown_cluster_on_k8s_is_a_kubernetes_status(gateway: Gateway) -> None:
    """`/k8s` is mounted and speaks Kubernetes' own errors."""
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    answer = await admin.call("GET", "//k8s/clusters/nowhere/api")
    assert (answer.status, answer.body["kind"]) == (404, "Status")
