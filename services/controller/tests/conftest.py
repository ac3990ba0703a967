"""What these tests share: the admin's client, and a controller that runs with its own ServiceAccount's rights."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from libs.faults import Fault, NotFound
from libs.kube import KubeClient, Resource
from libs.kube.resources import ENVIRONMENTS, NAMESPACES, TENANT_NETWORK_POLICIES, TENANT_RESOURCE_QUOTAS, TENANTS
from services.controller import app
from services.controller.config import Config

QUOTA = {"limits.cpu": "4", "limits.memory": "8Gi", "requests.storage": "10Gi"}
LIMITS = [{"type": "Container", "default": {"cpu": "500m", "memory": "512Mi"}, "defaultRequest": {"cpu": "100m", "memory": "128Mi"}}]


@pytest.fixture(scope="session")
async def kube(cluster: Any) -> AsyncIterator[KubeClient]:
    """The cluster's admin."""
    async with await KubeClient.from_kubeconfig(cluster.kubeconfig) as client:
        yield client


@pytest.fixture(scope="session")
async def account(cluster: Any) -> AsyncIterator[KubeClient]:
    """ServiceAccount gems-controller."""
    async with await KubeClient.from_kubeconfig(await cluster.service_account_kubeconfig("gems-controller")) as client:
        yield client


@pytest.fixture(scope="module")
async def controller(account: KubeClient) -> AsyncIterator[None]:
    """A controller at work; it leads alone while the module's tests run."""
    config = Config(identity=f"test-{secrets.token_hex(4)}", pod_cidrs=("10.99.0.0/16",), linger_seconds=2)
    task = asyncio.create_task(app.lead(account, config), name="controller")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@dataclass(slots=True)
class Story:
    """One tenant's objects, and questions about them."""

    kube: KubeClient
    tenant: str
    wait: Callable[..., Any]

    async def begin(self, *, isolated: bool = False) -> None:
        """The tenant's three objects."""
        await self.put(TENANTS, self.tenant, {"tenantName": self.tenant})
        await self.put(TENANT_RESOURCE_QUOTAS, self.tenant, {"hard": {"limits.cpu": "20", "requests.storage": "100Gi"}})
        await self.put(TENANT_NETWORK_POLICIES, self.tenant, {"tenant": self.tenant, "tenantIsolated": isolated})

    def name(self, environment: str) -> str:
        """Name of an environment and its namespace."""
        return f"{self.tenant}-shop-{environment}"

    async def environment(self, environment: str = "dev", **spec: Any) -> str:
        """Applies an Environment; returns its name."""
        name = spec.get("namespace") or self.name(environment)
        whole = {
            "tenant": self.tenant, "project": "shop", "environment": environment, "namespace": name,
            "resourceQuota": QUOTA, "limitRange": LIMITS, **spec,
        }  # fmt: skip
        await self.put(ENVIRONMENTS, name, whole)
        return name

    async def put(self, resource: Resource, name: str, spec: dict[str, Any], **annotations: str) -> dict[str, Any]:
        """Server-side apply, as the agent does it."""
        metadata = {"name": name, "annotations": {"gems.kubegems.io/uid": f"row-{name}", "gems.kubegems.io/generation": "1", **annotations}}
        return await self.kube.apply(resource, {"metadata": metadata, "spec": spec}, field_manager="gems-agent", force=True)

    async def conditions(self, name: str, resource: Resource = ENVIRONMENTS) -> dict[str, dict[str, Any]]:
        """Conditions by type, only those that speak of the current generation."""
        found = await self.kube.get(resource, name)
        generation = found["metadata"]["generation"]
        listed = (found.get("status") or {}).get("conditions") or ()
        return {c["type"]: c for c in listed if c["observedGeneration"] == generation}

    async def ready(self, name: str, resource: Resource = ENVIRONMENTS, *, within: float = 5) -> dict[str, Any]:
        """Waits for Ready; returns the object."""

        async def check() -> Any:
            conditions = await self.conditions(name, resource)
            assert conditions.get("Ready", {}).get("status") == "True", conditions
            return await self.kube.get(resource, name)

        return dict(await self.wait(check, within=within, what=f"{resource.kind} Ready"))

    async def reason(self, name: str, condition: str, reason: str, *, within: float = 5) -> dict[str, Any]:
        """Waits for a condition with a reason."""

        async def check() -> Any:
            found = (await self.conditions(name)).get(condition, {})
            assert found.get("reason") == reason, found
            return found

        return dict(await self.wait(check, within=within))

    async def tombstone(self, name: str) -> None:
        """Deletes an environment as the hub wants it: the tombstone first."""
        await self.kube.patch(ENVIRONMENTS, name, {"metadata": {"annotations": {"gems.kubegems.io/tombstone": "2"}}})
        await self.kube.delete(ENVIRONMENTS, name)

    async def absent(self, resource: Resource, name: str, namespace: str | None = None, *, within: float = 5) -> None:
        """Waits until an object is gone."""

        async def check() -> bool:
            try:
                await self.kube.get(resource, name, namespace)
            except NotFound:
                return True
            return False

        await self.wait(check, within=within, what=f"{resource.kind} gone")

    async def end(self) -> None:
        """Takes everything away."""
        names = [e["metadata"]["name"] async for e in self.kube.list(ENVIRONMENTS) if e["spec"]["tenant"] == self.tenant]
        for name in names:
            with contextlib.suppress(Fault):
                await self.kube.patch(ENVIRONMENTS, name, {"metadata": {"finalizers": None}})
                await self.kube.delete(ENVIRONMENTS, name)
        for resource in (TENANTS, TENANT_RESOURCE_QUOTAS, TENANT_NETWORK_POLICIES):
            with contextlib.suppress(Fault):
                await self.kube.delete(resource, self.tenant)
        namespaces = [n["metadata"]["name"] async for n in self.kube.list(NAMESPACES) if n["metadata"]["name"].startswith(self.tenant)]
        for name in namespaces:
            with contextlib.suppress(Fault):
                await self.kube.delete(NAMESPACES, name)


@pytest.fixture
async def story(kube: KubeClient, eventually: Any) -> AsyncIterator[Story]:
    """A tenant of its own for each test."""
    found = Story(kube, f"t{secrets.token_hex(4)}", eventually)
    yield found
    await found.end()
