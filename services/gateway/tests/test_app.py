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
from libs.run import Life
from services.gateway.app import start
from services.gateway.config import Config
from tests.kit.data import FreshDatabase
from tests.kit.nats import NatsServer
from tests.kit.rest import User, nobody

PASSWORD = "correct horse battery"


class Running:
    """A gateway and where it is."""

    def __init__(self, config: Config, life: Life, nobody_: User) -> None:
        self.config, self.life, self.nobody = config, life, nobody_

    def tls(self, name: str = "worker") -> rpc.Tls:
        certificates = Certificates(self.config.ca_file.parent)
        return rpc.Tls(certificates.certificate(name), certificates.key(name), certificates.ca)

    def plain(self, address: str) -> grpc.aio.Channel:
        """A channel that shows no certificate."""
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self.config.ca_file.read_bytes()))


@pytest.fixture(scope="module")
async def gateway(
    database: FreshDatabase,
    nats_server: NatsServer,
    hub_certificates: Certificates,
    free_ports: Ports,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "dsn").write_text(database.dsn)
    password = folder / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    names = ("rest", "grpc", "internal", "enrolment", "tunnel", "gateway-metrics")
    at = {name: f"127.0.0.1:{free_ports.take(name)}" for name in names}
    config = Config(
        database_url_file=folder / "dsn",
        master_key_file=hub_certificates.master_key,
        nats_url=nats_server.url,
        nats_seed_file=nats_server.seed_file("gateway"),
        certificate_file=hub_certificates.certificate("gateway"),
        key_file=hub_certificates.key("gateway"),
        ca_file=hub_certificates.ca,
        ca_key_file=hub_certificates.key("ca"),
        admin_password_file=password,
        public_url=f"https://{at['rest']}",
        rest_address=at["rest"],
        grpc_address=at["grpc"],
        internal_address=at["internal"],
        enrolment_address=at["enrolment"],
        tunnel_address=at["tunnel"],
        metrics_address=at["gateway-metrics"],
        msgbus_address="127.0.0.1:1",
        worker_address="127.0.0.1:1",
    )
    life = Life()
    try:
        await start(config, life)
        async with nobody(config.public_url, config.ca_file) as user:
            yield Running(config, life, user)
        assert life.failed is None
    finally:
        life.stopping.set()
        for step in life.on_drain:
            await step()
        await life.stack.aclose()


async def test_a_user_signs_in_and_works(gateway: Running) -> None:
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


async def test_strangers_and_mistakes(gateway: Running) -> None:
    """No token, a wrong password and a wrong field get their codes."""
    assert (await gateway.nobody.call("GET", "/tenants")).status == 401
    assert (await gateway.nobody.call("POST", "/sessions", {"username": "admin", "password": "wrong wrong wrong"})).status == 401
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    refused = await admin.call("POST", "/tenants", {"tenantId": "Acme", "tenat": {}})
    assert (refused.status, set(refused.fields)) == (400, {"tenat"})


async def test_a_forwarded_service_that_is_away_is_unavailable(gateway: Running) -> None:
    """Jobs belong to the worker; without it the gateway says when to come back."""
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    answer = await admin.call("GET", "/jobs")
    assert answer.status == 503
    assert "worker is away" in answer.body["error"]["message"]
    assert answer.headers["Retry-After"] == "1"


async def test_probes_and_keys(gateway: Running) -> None:
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


async def test_each_listener_serves_its_own(gateway: Running) -> None:
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


async def test_grpc_speaks_the_same(gateway: Running) -> None:
    """The same sign-in over gRPC, with a token that REST takes."""
    async with gateway.plain(gateway.config.grpc_address) as public:
        sign_in: Any = public.unary_unary("/kubegems.identity.v1.SessionService/CreateSession")
        request = session_service_pb2.CreateSessionRequest(username="admin", password=PASSWORD)
        reply = session_service_pb2.CreateSessionResponse.FromString(await sign_in(request.SerializeToString()))
    user = User(gateway.nobody.base, gateway.nobody.tls, gateway.nobody.session, reply.access_token)
    assert (await user.get("/users/me"))["name"] == "users/admin"


async def test_an_unknown_cluster_on_k8s_is_a_kubernetes_status(gateway: Running) -> None:
    """`/k8s` is mounted and speaks Kubernetes' own errors."""
    admin = await gateway.nobody.sign_in("admin", PASSWORD)
    answer = await admin.call("GET", "//k8s/clusters/nowhere/api")
    assert (answer.status, answer.body["kind"]) == (404, "Status")
