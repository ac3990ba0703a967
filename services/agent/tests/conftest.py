"""What the agent's tests share: a hub that enrols, and a client of the real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from kubegems.fleet.v1 import enrolment_service_pb2 as wire
from kubegems.fleet.v1.enrolment_service_pb2_grpc import EnrolmentServiceServicer, add_EnrolmentServiceServicer_to_server
from libs.crypt import ca
from libs.kube import KubeClient

CLUSTER_UID = "0198c0de-0000-7000-8000-000000000001"


class EnrollingHub(EnrolmentServiceServicer):
    """The hub's enrolment listener, with a certificate authority of its own, that keeps what it was asked."""

    def __init__(self, authority: ca.Authority) -> None:
        self.authority = authority
        self.enrolled: list[wire.EnrolRequest] = []
        self.renewed: list[wire.RenewRequest] = []
        self.problems: list[grpc.StatusCode] = []
        self.lifetime = timedelta(days=1)
        self.now = datetime.now(UTC)
        self.address = ""

    async def Enrol(self, request: wire.EnrolRequest, context: Any) -> wire.EnrolResponse:
        """Signs for any token."""
        self.enrolled.append(request)
        await self._problem(context)
        return wire.EnrolResponse(
            certificate=self._signed(request.certificate_request),
            ca=self.authority.bundle,
            cluster_uid=CLUSTER_UID,
            cluster="clusters/local",
            tunnel_address="127.0.0.1:1",
            nats_address="127.0.0.1:2",
        )

    async def Renew(self, request: wire.RenewRequest, context: Any) -> wire.RenewResponse:
        """Signs when the proof is good."""
        self.renewed.append(request)
        await self._problem(context)
        assert ca.proves(request.certificate, request.certificate_request.encode(), request.proof)
        return wire.RenewResponse(certificate=self._signed(request.certificate_request), ca=self.authority.bundle)

    async def _problem(self, context: Any) -> None:
        if self.problems:
            await context.abort(self.problems.pop(0), "as the test wants")

    def _signed(self, request: str) -> str:
        uri = f"{ca.SPIFFE}/cluster/{CLUSTER_UID}"
        return self.authority.sign_request(request, "agent", now=self.now, lifetime=self.lifetime, uri=uri)


async def serve(hub: EnrollingHub, *, chain: str = "", dns: str = "gateway.hub.kubegems.internal") -> grpc.aio.Server:
    """Starts the listener; `chain` follows its certificate, the CA when empty."""
    pair = hub.authority.issue("gateway", now=hub.now, lifetime=timedelta(days=1), dns=(dns,), ips=("127.0.0.1",))
    server = grpc.aio.server()
    add_EnrolmentServiceServicer_to_server(hub, server)
    shown = pair.certificate + (chain or hub.authority.certificate)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair.key.encode(), shown.encode())]))
    await server.start()
    hub.address = f"127.0.0.1:{port}"
    return server


@pytest.fixture
async def enrolling_hub() -> AsyncIterator[EnrollingHub]:
    """A hub that enrols."""
    authority, _ = ca.Authority.create("test hub", now=datetime.now(UTC))
    hub = EnrollingHub(authority)
    server = await serve(hub)
    yield hub
    await server.stop(0)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A join token."""
    file = tmp_path / "token"
    file.write_text("abc.secret\n")
    return file


@pytest.fixture(scope="session")
async def kube(cluster: Any) -> AsyncIterator[KubeClient]:
    """The cluster's admin."""
    async with await KubeClient.from_kubeconfig(cluster.kubeconfig) as client:
        yield client
