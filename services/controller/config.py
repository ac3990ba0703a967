"""Settings of the controller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.conf import doc
from libs.kube.manifest import NAMESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Makes tenants' environments real in one cluster."""

    kubeconfig_file: Path | None = doc("Kubeconfig of ServiceAccount gems-controller; not set inside a cluster.", default=None)
    namespace: str = doc("Namespace that holds the lease; it can never be an environment's.", default=NAMESPACE)
    identity: str = doc("Name of this process in the lease; host name and process id when not set.", default="")
    lease_seconds: int = doc("How long a leader that fell silent keeps the others waiting.", default=6)
    workers: int = doc("Environments reconciled at the same time.", default=4)
    pod_cidrs: tuple[str, ...] = doc("Pod address ranges that the nodes do not publish, such as an overlay's.", default=())
    linger_seconds: int = doc("How long a group stays allowed after its last environment here is gone.", default=300)
    grpc_address: str = doc("host:port that health and reflection are served on.", default="127.0.0.1:8465")
    metrics_address: str = doc("host:port of the Prometheus metrics.", default="127.0.0.1:8466")
