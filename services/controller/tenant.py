"""Tenants: what they have in this cluster."""

from __future__ import annotations

from libs.kube.resources import TENANTS
from libs.reconcile import DONE, Condition, Result
from services.controller import domain
from services.controller.tools import Tools


class TenantReconciler:
    """Says which environments and namespaces a tenant has; makes nothing."""

    def __init__(self, tools: Tools) -> None:
        self._t = tools

    async def reconcile(self, key: str) -> Result:
        """One run."""
        found = self._t.world.get(TENANTS, key)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return DONE
        with self._t.traces.span(TENANTS, found):
            environments = self._t.world.environments(key)
            facts = {
                "environments": [f"{one.project}/{one.environment}" for one in environments],
                "namespaces": [one.namespace for one in environments],
            }
            problem = domain.misnamed(found, "tenantName")
            named = Condition("NameValid", "False", "NameMismatch", problem) if problem else Condition("NameValid", "True", "AsWanted")
            await self._t.reporter.report(TENANTS, found, [named], facts)
        return DONE
