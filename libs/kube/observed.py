"""The kinds that every agent observes, whoever watches; others are observed while someone names them."""

from __future__ import annotations

from libs.kube import resources

BASE = (
    resources.NAMESPACES,
    resources.NODES,
    resources.EVENTS,
    resources.PODS,
    resources.SERVICES,
    resources.DEPLOYMENTS,
    resources.REPLICA_SETS,
    resources.STATEFUL_SETS,
    resources.DAEMON_SETS,
    resources.JOBS,
    resources.INGRESSES,
    resources.PERSISTENT_VOLUME_CLAIMS,
    resources.RESOURCE_QUOTAS,
    resources.NETWORK_POLICIES,
    *resources.OURS,
)
