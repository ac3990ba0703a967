"""Controller: the watches, the loops and what they share, for as long as this process leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from libs import log
from libs.clock import Clock
from libs.faults import Fault
from libs.kube import KubeClient, Resource
from libs.kube.resources import CLUSTER_ROLES, ENVIRONMENTS, TENANT_NETWORK_POLICIES, TENANT_RESOURCE_QUOTAS, TENANTS
from libs.reconcile import Loop
from services.controller.config import Config
from services.controller.environment import EnvironmentReconciler
from services.controller.events import Recorder
from services.controller.impersonated import ImpersonatedReconciler
from services.controller.keep import Keeper
from services.controller.routes import Routes
from services.controller.server import ServerFacts
from services.controller.status import Reporter
from services.controller.tenant import TenantReconciler
from services.controller.tenant_network_policy import TenantNetworkPolicyReconciler
from services.controller.tenant_resource_quota import TenantResourceQuotaReconciler
from services.controller.tools import Tools
from services.controller.tracing import Traces
from services.controller.world import World

_log = log.get(__name__)
_RESYNC = 600.0  # seconds; watches tell everything, this heals what they could not
_RETRY = 2.0


class Controller:
    """One life of leading: built anew each time, so that nothing of an earlier lead is believed."""

    def __init__(
        self, client: KubeClient, config: Config, *, clock: Clock, identity: str, on_synced: Callable[[], None] = lambda: None
    ) -> None:
        self._client = client
        self._on_synced = on_synced
        self._server = ServerFacts()
        loops: dict[Resource, Loop] = {}
        self._routes = Routes(loops)  # filled below: the reconcilers need the world first
        self.world = World(client, pod_cidrs=config.pod_cidrs, on_change=self._routes)
        self._routes.world = self.world
        recorder = Recorder(client, clock, identity=identity)
        tools = Tools(
            client=client, world=self.world, keeper=Keeper(client, self.world, recorder), reporter=Reporter(client, clock),
            recorder=recorder, traces=Traces(), server=self._server, namespace=config.namespace,
        )  # fmt: skip
        impersonated = ImpersonatedReconciler(tools, linger=config.linger_seconds, now=clock.monotonic)
        loops[ENVIRONMENTS] = Loop("environment", EnvironmentReconciler(tools).reconcile, workers=config.workers)
        loops[TENANTS] = Loop("tenant", TenantReconciler(tools).reconcile, workers=1)
        loops[TENANT_RESOURCE_QUOTAS] = Loop("tenant_resource_quota", TenantResourceQuotaReconciler(tools).reconcile, workers=1)
        loops[TENANT_NETWORK_POLICIES] = Loop("tenant_network_policy", TenantNetworkPolicyReconciler(tools).reconcile, workers=1)
        loops[CLUSTER_ROLES] = Loop("impersonated", impersonated.reconcile, workers=1)
        self._loops = loops

    async def run(self) -> None:
        """Watches, waits until all is seen, then reconciles until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.world.run(), name="world")
            await self.world.synced()
            await self._server_facts()
            self._routes.everything()
            for loop in self._loops.values():
                group.create_task(loop.run(), name=f"loop {loop.name}")
            self._on_synced()
            _log.info("controller.leading", environments=len(self.world.all(ENVIRONMENTS)))
            while True:
                await asyncio.sleep(_RESYNC)
                await self._server_facts()
                self._routes.everything()

    async def _server_facts(self) -> None:
        while True:
            try:
                await self._server.refresh(self._client)
            except Fault as fault:
                _log.warning("server.unknown", reason=fault.reason, problem=fault.message)
                await asyncio.sleep(_RETRY)
            else:
                return
