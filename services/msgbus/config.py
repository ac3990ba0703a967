"""Settings of msgbus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.conf import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Live push to people and programs."""

    database_url_file: Path = doc(
        "File that holds the PostgreSQL URL; msgbus keeps inboxes and announcements there, and writes audit records."
    )
    resume_key_file: Path = doc("File with the key (base64, 32 bytes) that resume tokens are sealed with.")
    nats_url: str = doc("URL of NATS, such as tls://127.0.0.1:8470.")
    nats_seed_file: Path = doc("File with msgbus' NATS nkey seed.")
    certificate_file: Path = doc("Certificate of msgbus (PEM), SAN spiffe://kubegems/hub/msgbus.")
    key_file: Path = doc("Key of the certificate (PEM).")
    ca_file: Path = doc("The hub's CA (PEM).")
    gateway_address: str = doc(
        "host:port of the gateway's internal gRPC listener; several IP addresses separated by commas are replicas.",
        default="127.0.0.1:8445",
    )
    grpc_address: str = doc("host:port that msgbus serves gRPC on.", default="127.0.0.1:8451")
    metrics_address: str = doc("host:port of the Prometheus metrics.", default="127.0.0.1:8452")
    queue_size: int = doc("Events that wait for one subscriber before it is told to RESYNC.", default=1000)
    streams_per_user: int = doc("Open subscriptions of one user on this replica.", default=100)
    retention_days: int = doc("Days that messages and ended announcements are kept.", default=90)
