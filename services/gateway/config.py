"""Settings of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.conf import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Public API, sign-in, rights, audit, desired state, tunnel end."""

    database_url_file: Path = doc("File that holds the PostgreSQL URL.")
    database_connections: int = doc("PostgreSQL connections of one replica.", default=20)
    master_key_file: Path = doc("File (0600) with the key (base64, 32 bytes) that secrets at rest and page tokens depend on.")
    nats_url: str = doc("URL of NATS, such as tls://127.0.0.1:8470.")
    nats_seed_file: Path = doc("File with the gateway's NATS nkey seed; callout.nk, system.nk and issuer.nk lie beside it.")
    certificate_file: Path = doc("Certificate of the gateway (PEM), SAN spiffe://kubegems/hub/gateway.")
    key_file: Path = doc("Key of the certificate (PEM).")
    ca_file: Path = doc("The hub's CA (PEM).")
    ca_key_file: Path = doc("Key of the hub's CA (PEM), which agents' certificates are signed with.")
    admin_password_file: Path | None = doc(
        "File (0600) with the first password of `admin`, used when there is no platform admin.", default=None
    )
    public_url: str = doc("https://host:port of the REST edge as users see it.", default="https://127.0.0.1:8443")
    rest_address: str = doc("host:port of the REST edge.", default="127.0.0.1:8443")
    viewer_folder: Path | None = doc("Folder of a built swagger-ui-dist, shown at /docs; `make viewer` fetches it.", default=None)
    grpc_address: str = doc("host:port of the public gRPC listener.", default="127.0.0.1:8444")
    internal_address: str = doc("host:port of the gRPC listener for hub services, mTLS.", default="127.0.0.1:8445")
    enrolment_address: str = doc("host:port of the gRPC listener where clusters join and renew.", default="127.0.0.1:8446")
    tunnel_address: str = doc("host:port of the agents' tunnel.", default="127.0.0.1:8447")
    peer_address: str = doc("host:port of tunnel_address as the other gateways reach it; empty: tunnel_address.", default="")
    metrics_address: str = doc("host:port of the Prometheus metrics.", default="127.0.0.1:8448")
    msgbus_address: str = doc(
        "host:port of msgbus; several IP addresses separated by commas are replicas, used in turn.", default="127.0.0.1:8451"
    )
    worker_address: str = doc("host:port of the worker.", default="127.0.0.1:8455")
    public_enrolment_address: str = doc("host:port of enrolment as clusters see it; empty: enrolment_address.", default="")
    public_tunnel_address: str = doc(
        "host:port of the tunnel as clusters see it, of each gateway with commas between, or a name that resolves to all; "
        "empty: tunnel_address.",
        default="",
    )
    public_nats_address: str = doc("host:port of NATS as clusters see it; empty: that of nats_url.", default="")
    reads_per_address: int = doc("Calls per second of one client address before it is slowed down.", default=500)
    connections_per_address: int = doc("REST connections of one client address at a time.", default=1024)
    streams_per_caller: int = doc("Open streams of one caller at a time.", default=100)
    tenant_weights: str = doc("Tenants that get more or less of the hub than others, as tenant=factor,…; 1 for all others.", default="")
    trusted_proxies: str = doc("Networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,…; none by default.", default="")
    cors_origins: str = doc("Other origins whose pages may call, such as https://console.example.com,…; none by default.", default="")
    certificate_hours: float = doc("Hours that an agent's certificate is good; it is renewed after two thirds.", default=24.0)
    agent_image: str = doc(
        "Image with agent and controller, such as registry.example/kubegems:0.1.0: the manifest of a join token then runs them as"
        " pods, and holds the token; empty: they run as processes, as the join command tells.",
        default="",
    )
