"""What an agent needs to be told to join: addresses, CA, command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import timedelta


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
    """

    enrolment_address: str
    tunnel_address: str
    nats_address: str
    edge_url: str
    ca: str
    certificate_lifetime: timedelta = timedelta(hours=24)


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
