"""TenantNetworkPolicies: whether all of a tenant's environments are isolated as its switches say."""

from __future__ import annotations

from libs.kube.resources import NETWORK_POLICIES, TENANT_NETWORK_POLICIES
from libs.reconcile import DONE, Condition, Result
from services.controller import domain, drift, isolation, wanted
from services.controller.domain import Environment, Object
from services.controller.tools import Tools


class TenantNetworkPolicyReconciler:
    """Judges and reports; the policies are made by the environments' own runs, so that each object has one maker."""

    def __init__(self, tools: Tools) -> None:
        self._t = tools

    async def reconcile(self, key: str) -> Result:
        """One run."""
        found = self._t.world.get(TENANT_NETWORK_POLICIES, key)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return DONE
        with self._t.traces.span(TENANT_NETWORK_POLICIES, found):
            await self._t.reporter.report(TENANT_NETWORK_POLICIES, found, [self._isolated(found)])
        return DONE

    def _isolated(self, found: Object) -> Condition:
        if problem := domain.misnamed(found, "tenant"):
            return Condition("Isolated", "False", "NameMismatch", problem)
        environments = [one for one in self._t.world.environments(found["metadata"]["name"]) if not one.deleting]
        off = [one.name for one in environments if not self._as_wanted(one, found)]
        if off:
            return Condition("Isolated", "False", "Pending", f"not as wanted yet in {', '.join(off[:10])}")
        return Condition("Isolated", "True", "AsWanted")

    def _as_wanted(self, one: Environment, policy: Object) -> bool:
        want = wanted.network_policy(one, isolation.policy_spec(isolation.switches(one, policy), self._t.world.pod_cidrs))
        have = self._t.world.get(NETWORK_POLICIES, "default", one.namespace)
        return have is None if want is None else have is not None and not drift.drifted(want, have)
