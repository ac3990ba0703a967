"""Figures of the links; made once per registry, since a process of the tests may hold more than one gateway."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge


class LinkMetrics:
    """How many agents are connected, and which tunnels were refused."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.online = Gauge("kubegems_links_online", "Clusters whose agent has a tunnel", registry=registry)
        self.forwarded = Counter("kubegems_links_forwarded", "Calls and requests sent through another gateway", registry=registry)
        self.refused = Counter("kubegems_links_refused", "Tunnels that were refused", ["why"], registry=registry)


@cache
def of(registry: CollectorRegistry) -> LinkMetrics:
    """The figures of a registry."""
    return LinkMetrics(registry)
