"""Figures: what Prometheus sees of the agent's link and of desired state."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from services.agent.desired.follower import Follower
from services.agent.link import AgentLink
from services.agent.renewal import Renewal


class Figures:
    """Gauges that are read when Prometheus asks."""

    def __init__(self, renewal: Renewal, *, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        end = self._gauge("certificate_end_seconds", "When the certificate ends, in seconds since 1970.")
        end.set_function(lambda: renewal.identity.not_after.timestamp())  # noqa: PLW0108 -- the identity changes
        self._gauge("certificate_failures", "Renewals that failed since the last that worked.").set_function(lambda: renewal.failures)

    def of(self, link: AgentLink, follower: Follower) -> None:
        """Adds those of the link and of desired state."""
        self._gauge("link_up", "1 while the tunnel stands.").set_function(lambda: float(link.connected))
        self._gauge("desired_generation", "Generation last applied whole.").set_function(lambda: follower.applied_generation)
        self._gauge("desired_failures", "Objects that could not be applied.").set_function(lambda: len(follower.outcome.failures))
        self._gauge("desired_waits", "1 while something waits for a human.").set_function(lambda: float(bool(follower.confirmation_needed)))

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"kubegems_agent_{name}", text, registry=self._registry)
