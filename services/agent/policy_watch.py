"""Watches the ConfigMap that holds the local policy."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

from kubegems.fleet.v1 import cluster_pb2
from libs import log
from libs.faults import Fault, PermissionDenied
from libs.kube import KubeClient
from libs.kube.resources import CONFIG_MAPS
from libs.kube.watch import watch
from services.agent.policy import FIELDS, NAME, LocalPolicy, Policy, parse

_FIRST_DELAY = 0.5
_MAX_DELAY = 30.0
_SELECTOR = f"metadata.name={NAME}"
_log = log.get(__name__)


class PolicyWatch:
    """Keeps a LocalPolicy as the cluster has it.

    Without the right to read it (a join manifest from before there were policies) there is none, and the hub is told so.
    While the API server is away the last one stays in force.
    """

    def __init__(self, client: KubeClient, policy: LocalPolicy) -> None:
        self._client, self._policy = client, policy
        self.unreadable = ""

    def told(self) -> cluster_pb2.LocalPolicy:
        """What the hub is told of it."""
        current = self._policy.current or Policy(problem="the agent has not read it yet")
        rules = [cluster_pb2.LocalPolicy.Rule(**{name: getattr(rule, name) for name in FIELDS}) for rule in current.deny]
        return cluster_pb2.LocalPolicy(deny=rules, problem=current.problem or self.unreadable)

    async def run(self) -> None:
        """Watches for ever."""
        delay = _FIRST_DELAY
        while True:
            try:
                await self._once()
                delay = _FIRST_DELAY
            except PermissionDenied as fault:
                self.unreadable = "the agent may not read the local policy; the cluster's admin must apply the join manifest"
                self._policy.put(Policy())
                _log.warning("policy.not_readable", problem=fault.message)
                delay = _MAX_DELAY
            except Fault as fault:
                _log.info("policy.not_watched", reason=fault.reason, problem=fault.message)
            await asyncio.sleep(random.uniform(delay / 2, delay))  # noqa: S311 -- jitter
            delay = min(delay * 2, _MAX_DELAY)

    async def _once(self) -> None:
        """One list and one watch."""
        page = await self._client.page(CONFIG_MAPS, self._policy.namespace, field_selector=_SELECTOR)
        self.unreadable = ""
        self._take(page.items[0] if page.items else None)
        events = watch(self._client, CONFIG_MAPS, self._policy.namespace, resource_version=page.resource_version, field_selector=_SELECTOR)
        async with aclosing(events) as found:
            async for event in found:
                if event.type in ("ADDED", "MODIFIED"):
                    self._take(event.object)
                elif event.type == "DELETED":
                    self._take(None)

    def _take(self, found: dict[str, object] | None) -> None:
        data = found.get("data") if found else None
        policy = parse(data if isinstance(data, dict) else {}) if found else Policy()
        if policy != self._policy.current:
            _log.info("policy.in_force", rules=len(policy.deny), problem=policy.problem)
        self._policy.put(policy)
