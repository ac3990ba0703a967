"""Settings of the agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.conf import doc


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the agent, which links one member cluster to the hub."""

    state_dir: Path = doc("Folder for the agent's key, certificate and desired state; made with mode 0700.")
    ca_hash: str = doc("SHA-256 (hex) of the hub's CA certificate, as the join command gives it; no other hub is trusted.")
    enrolment_address: str = doc("`host:port` of the hub's enrolment listener; unused in one-port mode.", default="")
    join_token_file: Path | None = doc(
        "File with the one-time join token `{id}.{secret}`; needed until the agent has joined.", default=None
    )
    cluster_state: bool = doc(
        "For a pod, whose folder goes with it: identity and progress are kept in Secret and ConfigMap gems-agent of the own namespace"
        " too, and of several pods only the one that holds Lease gems-agent works.",
        default=False,
    )
    kubeconfig_file: Path | None = doc("Kubeconfig of the cluster; none means the pod's own service account.", default=None)
    tunnel_address: str = doc(
        "`host:port` of the hub's tunnel, of each gateway with commas between; empty takes what the hub said at joining.", default=""
    )
    edge_url: str = doc(
        "`https://host:port` of the hub's edge, several with commas between: the tunnel goes through it as a WebSocket, and HTTPS_PROXY"
        " is respected; empty: TCP.",
        default="",
    )
    edge_ca_file: Path | None = doc("CA (PEM) that the edge's certificate is of, behind an ingress; none: the hub's own.", default=None)
    one_port: bool = doc(
        "Joining, renewal and NATS go through edge_url too, so that the agent needs to reach nothing else of the hub.", default=False
    )
    nats_address: str = doc("`host:port` of NATS; empty takes what the hub said at joining.", default="")
    namespace: str = doc("The agent's own namespace, where ConfigMap gems-agent-policy is.", default="kubegems-system")
    accepted_hub_uid: str = doc("Uid of a hub that may take over from the one known so far; set it only to move a cluster.", default="")
    resync_seconds: float = doc("How often the desired state is compared with the cluster in any case.", default=180.0)
    observe_rate: float = doc(
        "Observed changes published per second at most; beyond it only the newest of each object goes out.", default=500.0
    )
    observe_bytes: float = doc("Bytes of observed changes published per second at most, on average.", default=1024.0 * 1024)
    observe_pending: int = doc("Changes kept per kind while NATS is away; beyond it the kind is listed afresh.", default=2000)
    listen_address: str = doc("Address of the local ports.", default="127.0.0.1")
    grpc_port: int = doc("Port of the local gRPC server (health, reflection).", default=8461)
    metrics_port: int = doc("Port of Prometheus metrics.", default=8462)
