"""The groups that the agent may act with: `resourceNames` in ClusterRole gems:impersonated."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from libs import log
from libs.kube import JSON_PATCH
from libs.kube.resources import CLUSTER_ROLES, ENVIRONMENTS, TENANTS
from libs.reconcile import DONE, Again, Result
from services.controller import domain
from services.controller.domain import Object
from services.controller.tools import Tools
from services.controller.world import IMPERSONATED

_log = log.get(__name__)


def rules(groups: set[str]) -> list[dict[str, Any]]:
    """The whole role. An empty list of names would mean every group, so without groups there is no rule at all."""
    if not groups:
        return []
    return [{"apiGroups": [""], "resources": ["groups"], "resourceNames": sorted(groups), "verbs": ["impersonate"]}]


def groups_in(role: Object) -> set[str]:
    """The groups that a role allows to act with."""
    return {
        name
        for rule in role.get("rules") or ()
        if "groups" in (rule.get("resources") or ()) and "impersonate" in (rule.get("verbs") or ())
        for name in rule.get("resourceNames") or ()
    }


class ImpersonatedReconciler:
    """Keeps the role equal to the tenants, projects and environments that are here.

    A group that nothing needs any more stays for `linger` seconds: users still send it until the hub knows that its
    environment is gone, and one refused group would refuse their whole request.

    Args:
        tools: what to work with.
        linger: seconds.
        now: seconds that never go back.
    """

    def __init__(self, tools: Tools, *, linger: float, now: Callable[[], float]) -> None:
        self._t = tools
        self._linger = linger
        self._now = now
        self._unneeded_since: dict[str, float] = {}

    async def reconcile(self, _key: str) -> Result:
        """One run; there is one key only."""
        role = self._t.world.get(CLUSTER_ROLES, IMPERSONATED)
        if role is None:
            _log.warning("impersonated.missing", cluster_role=IMPERSONATED)
            return Again(timedelta(seconds=30))
        needed = domain.impersonated_groups(
            [found["spec"]["tenantName"] for found in self._t.world.all(TENANTS)],
            [domain.environment(found) for found in self._t.world.all(ENVIRONMENTS)],
        )
        lingering = self._lingering(groups_in(role) - needed)
        want = rules(needed | lingering)
        if want != (role.get("rules") or []):
            version = role["metadata"]["resourceVersion"]
            patch = [
                {"op": "test", "path": "/metadata/resourceVersion", "value": version},
                {"op": "add", "path": "/rules", "value": want},
            ]
            await self._t.client.patch(CLUSTER_ROLES, IMPERSONATED, patch, patch_type=JSON_PATCH)
            _log.info("impersonated.updated", groups=len(needed), lingering=len(lingering))
        return Again(timedelta(seconds=self._linger)) if lingering else DONE

    def _lingering(self, unneeded: set[str]) -> set[str]:
        """Of the groups that nothing needs, those of ours that may stay a while; what is not ours goes at once."""
        now = self._now()
        ours = {group for group in unneeded if group.startswith(("gems:tenant:", "gems:project:", "gems:environment:"))}
        self._unneeded_since = {group: self._unneeded_since.get(group, now) for group in ours}
        return {group for group, since in self._unneeded_since.items() if now < since + self._linger}
