"""What an agent needs to be told to join: addresses, CA, command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

from libs.kube.manifest import Workloads


@dataclass(frozen=True, slots=True)
class Joining:
    """Where the hub is, as seen from member clusters and users.

    Attributes:
        enrolment_address: `host:port` of the enrolment listener.
        tunnel_address: `host:port` of the tunnel.
        nats_address: `host:port` of NATS.
        edge_url: `https://host:port` of the REST edge, without a path.
        ca: the hub's CA certificate (PEM), which all of these show.
        certificate_lifetime: how long an agent's certificate is good.
        agent_image: image with agent and controller; empty when there is none.
    """

    enrolment_address: str
    tunnel_address: str
    nats_address: str
    edge_url: str
    ca: str
    certificate_lifetime: timedelta = timedelta(hours=24)
    agent_image: str = ""


def command(joining: Joining, cluster: str, token: str, ca_hash: str, *, one_port: bool = False) -> str:
    """A shell command that runs an agent which joins; the token goes through a file that only its owner reads."""
    state = f"$HOME/.kubegems/{cluster}"
    road = {"ONE_PORT": "true", "EDGE_URL": joining.edge_url} if one_port else {"ENROLMENT_ADDRESS": joining.enrolment_address}
    variables = {name: shlex.quote(value) for name, value in road.items()} | {"CA_HASH": ca_hash}
    settings = " ".join(f"KUBEGEMS_AGENT_{name}={value}" for name, value in variables.items())
    return (
        f'(umask 077; mkdir -p "{state}"; printf %s {shlex.quote(token)} > "{state}/join-token")\n'
        f'{settings} KUBEGEMS_AGENT_STATE_DIR="{state}" KUBEGEMS_AGENT_JOIN_TOKEN_FILE="{state}/join-token" \\\n'
        '  KUBEGEMS_AGENT_KUBECONFIG_FILE="${KUBECONFIG:-$HOME/.kube/config}" python -m services.agent\n'
    )


def workloads(joining: Joining, token: str, ca_hash: str, *, one_port: bool = False) -> Workloads | None:
    """Agent and controller for the manifest; None without an image."""
    if not joining.agent_image:
        return None
    told = (joining.enrolment_address, joining.tunnel_address, joining.nats_address)
    road = [joining.edge_url] if one_port else [f"tcp://{one.strip()}" for text in told for one in text.split(",")]
    return Workloads(
        image=joining.agent_image,
        token=token,
        ca_hash=ca_hash,
        enrolment_address="" if one_port else joining.enrolment_address,
        edge_url=joining.edge_url if one_port else "",
        hub_ports=tuple(sorted({urlsplit(url).port or 443 for url in road})),
    )
