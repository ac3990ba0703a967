"""A real agent process: real cluster with the join manifest's rights, real NATS with its callout, real tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from kubegems.agent.v1 import events_pb2, inventory_service_pb2
from kubegems.fleet.v1 import events_pb2 as fleet_events_pb2
from libs import rpc
from libs.bus import Bus, streams, subjects
from libs.clock import SystemClock
from libs.kube import KubeClient
from libs.kube.resources import NAMESPACES, TENANTS
from libs.tunnel.tcp import server_tls
from services.agent.enrolment import Enrolment
from services.agent.identity import IdentityFiles
from services.agent.tests.conftest import CLUSTER_UID, EnrollingHub, serve
from services.gateway.link.grants import ServicePrincipal
from services.gateway.link.links import Links
from services.gateway.link.nats_auth import NatsAuth

pytestmark = pytest.mark.cluster

_DESIRED = wire.DESCRIPTOR.services_by_name["DesiredStateService"]
_INVENTORY = inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"].methods_by_name["GetInventory"]
_STATE = wire.ObjectStatus.State


@dataclass
class Fleet:
    """The hub's desired state for the one cluster, and what it was told."""

    uid: str = field(default_factory=lambda: f"hub-{secrets.token_hex(4)}")
    prefix: str = field(default_factory=lambda: f"it{secrets.token_hex(3)}")
    reply: wire.FetchDesiredStateResponse = field(default_factory=wire.FetchDesiredStateResponse)
    reports: list[wire.ReportStatusRequest] = field(default_factory=list)

    def want(self, *names: str, buried: tuple[str, ...] = ()) -> None:
        """The next generation: these tenants, and tombstones for others."""
        generation = self.reply.generation + 1
        self.reply = wire.FetchDesiredStateResponse(hub_uid=self.uid, generation=generation, checksum=f"sum-{generation}")
        for name in names:
            spec = {"labels": {}, "annotations": {}, "spec": {"tenantName": self.name(name)}}
            self.reply.objects.add(
                kind="Tenant", name=self.name(name), uid=f"row-{name}", generation=generation, manifest=orjson.dumps(spec)
            )
        for name in buried:
            self.reply.tombstones.add(kind="Tenant", name=self.name(name), uid=f"row-{name}", generation=generation)

    def name(self, name: str) -> str:
        """A name of this run's own."""
        return f"{self.prefix}-{name}"

    def state(self, name: str) -> int:
        """What the hub holds of a tenant."""
        found = [o.state for report in self.reports for o in report.objects if o.name == self.name(name)]
        return found[-1] if found else _STATE.STATE_UNSPECIFIED

    async def FetchDesiredState(self, request: wire.FetchDesiredStateRequest, call: Any) -> wire.FetchDesiredStateResponse:
        """The set, or that it is known."""
        assert call.caller.id == CLUSTER_UID
        if request.known_generation == self.reply.generation and request.known_checksum == self.reply.checksum:
            return wire.FetchDesiredStateResponse(hub_uid=self.uid, generation=self.reply.generation, unchanged=True)
        return self.reply

    async def ReportStatus(self, request: wire.ReportStatusRequest, call: Any) -> wire.ReportStatusResponse:
        """Keeps it."""
        self.reports.append(request)
        return wire.ReportStatusResponse()

    async def FetchInterest(self, request: wire.FetchInterestRequest, call: Any) -> wire.FetchInterestResponse:
        """Roles, beyond the base set, and Secrets, which no one gets."""
        return wire.FetchInterestResponse(resources=["configmaps.v1.", "secrets.v1.", "nonsense"])


@dataclass
class Scene:
    """Everything around the agent."""

    fleet: Fleet
    enrolling: EnrollingHub
    links: Links
    bus: Bus
    settings: dict[str, str]
    folder: Path

    @contextlib.asynccontextmanager
    async def agent(self, grpc_port: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """The process; it must end by itself when told to."""
        env = os.environ | self.settings | {"KUBEGEMS_AGENT_GRPC_PORT": str(grpc_port)}
        with (self.folder / "agent.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.agent", env=env, stderr=log)
        try:
            yield process
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 30) == 0, (self.folder / "agent.log").read_text()[-4000:]
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture(scope="module")
async def scene(  # noqa: PLR0917 -- fixtures
    tmp_path_factory: pytest.TempPathFactory, hub_ca: Any, hub_certificates: Any, nats_server: Any, cluster: Any, free_ports: Any
) -> AsyncIterator[Scene]:
    """A hub, as far as an agent sees it."""
    folder = tmp_path_factory.mktemp("agent")
    fleet, enrolling = Fleet(), EnrollingHub(hub_ca)
    enrolment = await serve(enrolling)
    links = Links(
        hub_uid=fleet.uid, version="1.0", pipeline=rpc.Pipeline(rpc.methods(_DESIRED, fleet), registry=CollectorRegistry()),
        allowed=_allowed, clock=SystemClock(), on_change=_changed, registry=CollectorRegistry(),
    )  # fmt: skip
    tls = server_tls(hub_certificates.certificate("gateway"), hub_certificates.key("gateway"), hub_certificates.ca)
    tunnel = await links.serve("127.0.0.1", 0, tls)
    auth = NatsAuth(nats_server.url, nats_server.tls(), nats_server.seed_file("gateway").parent, _refused)
    answering = asyncio.create_task(auth.run(), name="callout")
    bus = await Bus.connect(nats_server.url, name="gateway", tls=nats_server.tls(), nkey_seed_file=nats_server.seed_file())
    await bus.ensure_stream(streams.cluster(CLUSTER_UID))
    token = folder / "token"
    token.write_text("it.secret-canary")
    settings = {
        "STATE_DIR": folder / "state",
        "ENROLMENT_ADDRESS": enrolling.address,
        "CA_HASH": hub_ca.fingerprint,
        "JOIN_TOKEN_FILE": token,
        "KUBECONFIG_FILE": await cluster.service_account_kubeconfig("gems-agent"),
        "TUNNEL_ADDRESS": f"127.0.0.1:{tunnel}",
        "NATS_ADDRESS": nats_server.url.removeprefix("tls://"),
        "METRICS_PORT": free_ports.take("agent-metrics"),
    }
    yield Scene(fleet, enrolling, links, bus, {f"KUBEGEMS_AGENT_{k}": str(v) for k, v in settings.items()}, folder)
    await bus.close()
    answering.cancel()
    await asyncio.wait([answering])
    await links.close()
    await enrolment.stop(0)


async def _allowed(uid: str, _serial: str) -> bool:
    return uid == CLUSTER_UID


async def _refused(held: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(uid, serial) for uid, serial in held if uid != CLUSTER_UID]


async def _changed(_uid: str, _online: bool, _version: str, _number: int) -> None:
    return


@pytest.fixture(scope="module")
async def kube(cluster: Any) -> AsyncIterator[KubeClient]:
    """The cluster's admin."""
    async with await KubeClient.from_kubeconfig(cluster.kubeconfig) as client:
        yield client


async def test_an_agents_life(scene: Scene, kube: KubeClient, free_ports: Any, eventually: Any) -> None:
    """Join, apply, report, observe, follow a hint, answer an inventory call, remove; then a restart without a token."""
    fleet = scene.fleet
    fleet.want("one")
    observed: list[events_pb2.ObservedChange] = []
    port = free_ports.take("agent")
    watching = asyncio.create_task(_watch(scene.bus, observed), name="observed")
    try:
        async with scene.agent(port):
            await eventually(lambda: scene.links.online(CLUSTER_UID), within=30, what="joined")
            await eventually(lambda: fleet.state("one") == _STATE.APPLIED, within=10, what="applied and reported")
            assert any(report.full for report in fleet.reports)
            assert (await kube.get(TENANTS, fleet.name("one")))["metadata"]["annotations"]["gems.kubegems.io/uid"] == "row-one"
            await _healthy(port)

            await eventually(lambda: "namespaces" in _listed(observed), within=15, what="observed")
            namespace = fleet.name("ns")
            await kube.create(NAMESPACES, {"metadata": {"name": namespace}})
            await eventually(lambda: any(c.name == namespace for c in observed), within=5, what="a change is observed")
            await kube.delete(NAMESPACES, namespace)
            await eventually(lambda: "configmaps" in _listed(observed), within=10, what="interest is followed")
            assert "secrets" not in {c.resource for c in observed}

            fleet.want("one", "two")
            await scene.bus.hint(subjects.desired(CLUSTER_UID), fleet_events_pb2.DesiredStateHint(generation=2))
            await eventually(lambda: fleet.state("two") == _STATE.APPLIED, within=5, what="hint followed")

            user = ServicePrincipal("gems:service:inventory", "", ())
            reply = await scene.links.call(CLUSTER_UID, _INVENTORY, inventory_service_pb2.GetInventoryRequest(), user, timeout=10)
            assert reply.inventory.kubernetes_version.startswith("v1.")

            fleet.want("two", buried=("one",))
            await scene.bus.hint(subjects.desired(CLUSTER_UID), fleet_events_pb2.DesiredStateHint(generation=3))
            await kube.patch(TENANTS, fleet.name("one"), {"metadata": {"finalizers": None}})
            await eventually(lambda: fleet.state("one") == _STATE.REMOVED, within=10, what="removed")
        await eventually(lambda: not scene.links.online(CLUSTER_UID), within=10)

        fleet.reports.clear()
        async with scene.agent(port):
            await eventually(lambda: fleet.reports and fleet.reports[-1].applied_generation == 3, within=20, what="back after a restart")
        assert len(scene.enrolling.enrolled) == 1
        assert "secret-canary" not in (scene.folder / "agent.log").read_text()
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        async for tenant in kube.list(TENANTS):
            if tenant["metadata"]["name"].startswith(fleet.prefix):
                await kube.delete(TENANTS, tenant["metadata"]["name"])


async def test_an_expired_certificate_comes_back(scene: Scene, free_ports: Any, eventually: Any) -> None:
    """An agent that was off for longer than its certificate lived renews by proof and links again."""
    state = scene.folder / "old-state"
    settings = scene.settings | {"KUBEGEMS_AGENT_STATE_DIR": str(state)}
    hub = scene.enrolling
    hub.now = datetime.now(UTC) - timedelta(days=3)  # certificates live for one
    enrolment = Enrolment(hub.address, hub.authority.fingerprint, IdentityFiles(state), version="x")
    await enrolment.join(Path(settings["KUBEGEMS_AGENT_JOIN_TOKEN_FILE"]))
    hub.now = datetime.now(UTC)
    async with Scene(scene.fleet, hub, scene.links, scene.bus, settings, scene.folder).agent(free_ports.take("agent-2")):
        await eventually(lambda: scene.links.online(CLUSTER_UID), within=30, what="renewed and linked")
    assert hub.renewed


async def _watch(bus: Bus, observed: list[events_pb2.ObservedChange]) -> None:
    async for received in bus.follow(streams.cluster(CLUSTER_UID).name, after=0):
        if not received.gap:
            observed.append(received.parse(events_pb2.ObservedChange))


def _listed(observed: list[events_pb2.ObservedChange]) -> set[str]:
    """Kinds that were listed whole."""
    return {c.resource for c in observed if c.verb == events_pb2.ObservedChange.LISTED}


async def _healthy(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
