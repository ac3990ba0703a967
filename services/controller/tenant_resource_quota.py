"""TenantResourceQuotas: what a tenant's environments have been given and use, against what it may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.kube import quantity
from libs.kube.resources import RESOURCE_QUOTAS, TENANT_RESOURCE_QUOTAS
from libs.reconcile import DONE, Condition, Result
from services.controller.domain import CONTROLLER, MANAGED_BY, Object
from services.controller.tools import Tools


def counted(hard: Mapping[str, str], quotas: Iterable[Object], field: str) -> dict[str, str]:
    """Sums of a status field over ResourceQuotas, for the resources that the tenant's quota names."""
    lists = [(found.get("status") or {}).get(field) or {} for found in quotas]
    summed = quantity.total({name: str(text) for name, text in one.items() if name in hard} for one in lists)
    return {name: summed.get(name, "0") for name in sorted(hard)}


def exceeded(hard: Mapping[str, str], allocated: Mapping[str, str]) -> list[str]:
    """Where more was given than there is, in words."""
    return [
        f"{name}: {allocated[name]} given of {hard[name]}" for name in sorted(hard) if quantity.compare(allocated[name], hard[name]) > 0
    ]


class TenantResourceQuotaReconciler:
    """Counts; the hub is what keeps the sum within the limit."""

    def __init__(self, tools: Tools) -> None:
        self._t = tools

    async def reconcile(self, key: str) -> Result:
        """One run."""
        found = self._t.world.get(TENANT_RESOURCE_QUOTAS, key)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return DONE
        with self._t.traces.span(TENANT_RESOURCE_QUOTAS, found):
            hard = {name: str(text) for name, text in found["spec"]["hard"].items()}
            quotas = [q for q in self._t.world.of_tenant(RESOURCE_QUOTAS, key) if q["metadata"]["labels"].get(MANAGED_BY) == CONTROLLER]
            facts = {"hard": hard, "allocated": counted(hard, quotas, "hard"), "used": counted(hard, quotas, "used")}
            over = exceeded(hard, facts["allocated"])
            fits = Condition("Fits", "False", "Overallocated", "; ".join(over)) if over else Condition("Fits", "True", "AsWanted")
            await self._t.reporter.report(TENANT_RESOURCE_QUOTAS, found, [fits], {name: value for name, value in facts.items() if value})
        return DONE
