"""Settings of the worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.conf import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Durable background jobs and schedules."""

    database_url_file: Path = doc("File that holds the PostgreSQL URL.")
    page_key_file: Path = doc("File with the key (base64, 32 bytes) that page tokens are signed with; the hub's master key.")
    nats_url: str = doc("URL of NATS, such as tls://127.0.0.1:8470.")
    nats_seed_file: Path = doc("File with the worker's NATS nkey seed.")
    certificate_file: Path = doc("Certificate of the worker (PEM), SAN spiffe://kubegems/hub/worker.")
    key_file: Path = doc("Key of the certificate (PEM).")
    ca_file: Path = doc("The hub's CA (PEM).")
    gateway_address: str = doc(
        "host:port of the gateway's internal gRPC listener; several IP addresses separated by commas are replicas.",
        default="127.0.0.1:8445",
    )
    grpc_address: str = doc("host:port that the worker serves gRPC on.", default="127.0.0.1:8455")
    metrics_address: str = doc("host:port of the Prometheus metrics.", default="127.0.0.1:8456")
    inventory_seconds: int = doc("Seconds between two inventories of each cluster.", default=60)
    usage_seconds: int = doc("Seconds between two samples of what environments use.", default=300)
    keep_samples_days: int = doc("Days that single samples of usage are kept; sums of days are kept for ever.", default=14)
    keep_reads_days: int = doc("Days that audit records of reads are kept; those of changes are kept for ever.", default=90)
    concurrency: int = doc("Jobs that run at the same time.", default=32)
