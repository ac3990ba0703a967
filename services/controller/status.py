"""Writing a status: only when it says something new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libs.clock import Clock
from libs.kube import KubeClient, Resource
from libs.reconcile import Condition, merged
from libs.reconcile.conditions import summed
from services.controller.domain import CONTROLLER, Object


class Reporter:
    """Writes statuses by server-side apply, bound to the uid, so that a successor never gets its ancestor's status."""

    def __init__(self, client: KubeClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def report(
        self, resource: Resource, found: Object, conditions: Sequence[Condition], facts: Mapping[str, Any] | None = None
    ) -> Condition:
        """Writes the status unless it stands there already; returns `Ready`, which sums the conditions up."""
        ready = summed(conditions)
        old = found.get("status") or {}
        generation = found["metadata"]["generation"]
        now = self._clock.now().isoformat(timespec="seconds").replace("+00:00", "Z")
        status = {
            "observedGeneration": generation,
            "conditions": merged(old.get("conditions") or (), (ready, *conditions), now=now, generation=generation),
            **(facts or {}),
        }
        if status != {key: value for key, value in old.items() if key != "lastUpdateTime"}:
            metadata = found["metadata"]
            body = {"metadata": {"name": metadata["name"], "uid": metadata["uid"]}, "status": {**status, "lastUpdateTime": now}}
            await self._client.apply_status(resource, body, field_manager=CONTROLLER)
        return ready
