"""Routes: which keys of which loop a change concerns."""

from __future__ import annotations

from collections.abc import Mapping

from libs.kube import Change, Resource
from libs.kube.resources import (
    CLUSTER_ROLES,
    ENVIRONMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    RESOURCE_QUOTAS,
    TENANT_NETWORK_POLICIES,
    TENANT_RESOURCE_QUOTAS,
    TENANTS,
)
from libs.reconcile import Loop, keys
from services.controller import domain
from services.controller.world import IMPERSONATED, MADE, World

_tenant_of = keys.label(domain.TENANT)


class Routes:
    """Adds keys to the loops as the world changes.

    Args:
        loops: by the kind they reconcile; ClusterRole stands for gems:impersonated.
    """

    def __init__(self, loops: Mapping[Resource, Loop]) -> None:
        self._loops = loops
        self.world: World | None = None

    def __call__(self, resource: Resource, change: Change) -> None:
        """Takes one change."""
        found = change.object
        if resource in self._loops and resource is not CLUSTER_ROLES:
            self._add(resource, *keys.own_name(found))
        if resource is ENVIRONMENTS:
            tenant = found["spec"]["tenant"]
            for other in (TENANTS, TENANT_NETWORK_POLICIES):
                self._add(other, tenant)
            self._add(CLUSTER_ROLES, IMPERSONATED)
        elif resource is TENANTS or resource is CLUSTER_ROLES:
            self._add(CLUSTER_ROLES, IMPERSONATED)
            self._waiting_for_rights()
        elif resource is TENANT_NETWORK_POLICIES:
            self._environments_of(*keys.own_name(found))
        elif resource is NAMESPACES:
            self._add(ENVIRONMENTS, *keys.own_name(found))
        elif resource is NODES:
            self._everything()
        elif resource in MADE:
            self._made(resource, change)

    def everything(self) -> None:
        """Adds every key there is: at the start, and now and then in case a change was missed."""
        self._everything()
        self._add(CLUSTER_ROLES, IMPERSONATED)

    def _made(self, resource: Resource, change: Change) -> None:
        self._add(ENVIRONMENTS, *keys.namespace(change.object))
        tenants = tuple(_tenant_of(change.object))
        if resource is RESOURCE_QUOTAS:
            self._add(TENANT_RESOURCE_QUOTAS, *tenants)
        elif resource is NETWORK_POLICIES:
            self._add(TENANT_NETWORK_POLICIES, *tenants)

    def _everything(self) -> None:
        assert self.world is not None
        for resource in (ENVIRONMENTS, TENANTS, TENANT_RESOURCE_QUOTAS, TENANT_NETWORK_POLICIES):
            self._add(resource, *(found["metadata"]["name"] for found in self.world.all(resource)))

    def _environments_of(self, tenant: str) -> None:
        assert self.world is not None
        self._add(ENVIRONMENTS, *(one.name for one in self.world.environments(tenant)))

    def _waiting_for_rights(self) -> None:
        """Environments whose groups may have become allowed just now."""
        assert self.world is not None
        for found in self.world.all(ENVIRONMENTS):
            conditions = (found.get("status") or {}).get("conditions") or ()
            if not any(c["type"] == "RightsReady" and c["status"] == "True" for c in conditions):
                self._add(ENVIRONMENTS, found["metadata"]["name"])

    def _add(self, resource: Resource, *names: str) -> None:
        for name in names:
            self._loops[resource].add(name)
