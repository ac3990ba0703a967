"""World: what the controller sees of the cluster, and which keys a change concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from libs import log
from libs.kube import Change, KubeClient, Reflector, Resource, Verb
from libs.kube.reflector import untrimmed
from libs.kube.resources import (
    CLUSTER_ROLES,
    ENVIRONMENTS,
    LIMIT_RANGES,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    RESOURCE_QUOTAS,
    ROLE_BINDINGS,
    TENANT_NETWORK_POLICIES,
    TENANT_RESOURCE_QUOTAS,
    TENANTS,
)
from services.controller import domain, isolation
from services.controller.domain import Environment, Object

_log = log.get(__name__)
_RETRY = 5.0  # seconds at most between two tries to watch a kind, so that CRDs that appear late are seen soon
_REPORT = 10.0
MADE = (RESOURCE_QUOTAS, LIMIT_RANGES, NETWORK_POLICIES, ROLE_BINDINGS)
IMPERSONATED = "gems:impersonated"

OnChange = Callable[[Resource, Change], None]


class World:
    """Watches every kind that matters, in one place.

    Args:
        client: the controller's own.
        pod_cidrs: pod address ranges that nodes do not publish.
        on_change: told of each change, after the stores have it.
    """

    def __init__(self, client: KubeClient, *, pod_cidrs: Iterable[str] = (), on_change: OnChange) -> None:
        self._pod_cidrs = tuple(pod_cidrs)
        self._on_change = on_change
        self._cidrs: tuple[str, ...] = ()
        by_tenant = {"tenant": lambda found: (found["spec"].get("tenant", ""),)}
        by_label = {"tenant": lambda found: ((found["metadata"].get("labels") or {}).get(domain.TENANT, ""),)}
        self._reflectors: dict[Resource, Reflector] = {}

        def watch(resource: Resource, **options: Any) -> None:
            self._reflectors[resource] = Reflector(client, resource, self._receiver(resource), max_delay=_RETRY, **options)

        watch(ENVIRONMENTS, indexes=by_tenant)
        for resource in (TENANTS, TENANT_RESOURCE_QUOTAS, TENANT_NETWORK_POLICIES, NAMESPACES):
            watch(resource)
        for resource in MADE:
            watch(resource, label_selector=domain.TENANT, indexes=by_label)
        watch(NODES, trim=_node)
        watch(CLUSTER_ROLES, field_selector=f"metadata.name={IMPERSONATED}")

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for resource, reflector in self._reflectors.items():
                group.create_task(reflector.run(), name=f"watch {resource.plural}")

    async def synced(self) -> None:
        """Waits until every kind has been listed once; says every few seconds what is missing, such as CRDs."""
        while missing := [r for r, reflector in self._reflectors.items() if not reflector.synced.is_set()]:
            waits = [asyncio.ensure_future(self._reflectors[r].synced.wait()) for r in missing]
            _, pending = await asyncio.wait(waits, timeout=_REPORT)
            for wait in pending:
                wait.cancel()
            if pending:
                _log.warning("world.incomplete", kinds=self.problems())

    def problems(self) -> dict[str, str]:
        """Why kinds cannot be watched now, by kind."""
        return {r.kind: reflector.problem.reason for r, reflector in self._reflectors.items() if reflector.problem}

    def get(self, resource: Resource, name: str, namespace: str = "") -> Object | None:
        """One object."""
        return self._reflectors[resource].store.get(name, namespace)

    def all(self, resource: Resource) -> list[Object]:
        """All objects of a kind."""
        return list(self._reflectors[resource].store)

    def made_in(self, resource: Resource, namespace: str) -> list[Object]:
        """Objects of a kind in a namespace that carry a tenant's label."""
        return self._reflectors[resource].store.find("namespace", namespace)

    def of_tenant(self, resource: Resource, tenant: str) -> list[Object]:
        """Environments of a tenant, or what carries its label."""
        return self._reflectors[resource].store.find("tenant", tenant)

    def environments(self, tenant: str) -> list[Environment]:
        """A tenant's environments, by name."""
        return sorted((domain.environment(found) for found in self.of_tenant(ENVIRONMENTS, tenant)), key=lambda one: one.name)

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """Where pods' addresses are, as far as is known."""
        return tuple(sorted({*self._pod_cidrs, *self._cidrs}))

    def _receiver(self, resource: Resource) -> Callable[[Change], Awaitable[None]]:
        async def receive(change: Change) -> None:
            if resource is NODES and not self._cidrs_changed():
                return
            if change.verb is not Verb.LISTED:
                self._on_change(resource, change)

        return receive

    def _cidrs_changed(self) -> bool:
        """Nodes report several times a minute; only their address ranges matter here."""
        found = isolation.node_cidrs(self._reflectors[NODES].store)
        changed, self._cidrs = found != self._cidrs, found
        return changed


def _node(found: Object) -> Object:
    """What is read of a node."""
    metadata, spec = untrimmed(found)["metadata"], found.get("spec") or {}
    kept = {key: metadata[key] for key in ("name", "uid", "resourceVersion") if key in metadata}
    return {"metadata": kept, "spec": {key: spec[key] for key in ("podCIDR", "podCIDRs") if key in spec}}
