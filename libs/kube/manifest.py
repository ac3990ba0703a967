"""Manifest: what a cluster's admin applies so that the cluster can join.

CRDs, roles, service accounts and bindings, read from `deploy/crds` and `deploy/join/manifest.yaml`, rendered for a server's
version; they hold no secret and nothing of one cluster. With `Workloads` the agent, the controller and their network
policies follow (`deploy/join/workloads.yaml`), and the join token in a Secret, which the agent's pod mounts.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

NAMESPACE = "kubegems-system"
_DEPLOY = Path(__file__).parents[2] / "deploy"
_OPTION = "gems.kubegems.io/optional"
_CEL_IN_CRDS = (1, 23)
_ADMISSION_POLICIES = (1, 30)
_HOLE = re.compile(r"\$\{(\w+)\}")
_JOIN_SECRET = "gems-agent-join"  # noqa: S105 -- a name
_BARE = """\
# Agent and controller are not among these objects, since the hub names no image of them (its setting agent_image): they run
# as processes, as the command that came with the join token tells, or by the Helm chart.
"""
_WHOLE = """\
# Agent and controller are the last of these objects. Keep this text to yourself: Secret %s holds a join token, good for
# one cluster and a short time; the Secret may go once the cluster is online.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workloads:
    """Agent and controller as pods of the cluster.

    Attributes:
        image: with the services.
        token: the join token.
        ca_hash: SHA-256 of the hub's CA, hex.
        enrolment_address: `host:port` where the agent joins; empty in one-port mode.
        edge_url: the hub's HTTPS edge, in one-port mode.
        hub_ports: TCP ports of the hub that the agent connects to.
        api_server_ports: those of Service default/kubernetes and of what is behind it.
    """

    image: str
    token: str = field(repr=False)
    ca_hash: str
    enrolment_address: str = ""
    edge_url: str = ""
    hub_ports: tuple[int, ...]
    api_server_ports: tuple[int, ...] = (443, 6443)


def render(
    *,
    workloads: Workloads | None = None,
    without_cluster_admin: bool = False,
    kubernetes_version: tuple[int, int] | None = None,
    namespace: str = NAMESPACE,
    deploy: Path = _DEPLOY,
) -> str:
    """The manifest as YAML documents, in the order they must be applied.

    Args:
        workloads: agent and controller as pods; None leaves them out, which a comment says.
        without_cluster_admin: leaves out the binding that makes KubeGems' platform admins cluster admins.
        kubernetes_version: major and minor of the server; None renders for a current one. Below 1.23 the CRDs come
            without CEL rules (the controller checks the same), below 1.30 the admission policy is left out.
        namespace: where the agent and the controller live.
        deploy: folder that holds `crds` and `join`.
    """
    objects = documents(
        workloads=workloads, without_cluster_admin=without_cluster_admin, kubernetes_version=kubernetes_version,
        namespace=namespace, deploy=deploy,
    )  # fmt: skip
    head = _WHOLE % _JOIN_SECRET if workloads else _BARE
    return head + yaml.safe_dump_all(list(objects), sort_keys=False, width=1000)


def documents(
    *,
    workloads: Workloads | None = None,
    without_cluster_admin: bool = False,
    kubernetes_version: tuple[int, int] | None = None,
    namespace: str = NAMESPACE,
    deploy: Path = _DEPLOY,
) -> Iterator[Object]:
    """The same, as objects."""
    off = {"cluster-admin"} if without_cluster_admin else set()
    if kubernetes_version and kubernetes_version < _ADMISSION_POLICIES:
        off.add("admission")
    cel = not kubernetes_version or kubernetes_version >= _CEL_IN_CRDS
    for path in sorted((deploy / "crds").glob("*.yaml")):
        for found in yaml.safe_load_all(path.read_text()):
            yield found if cel else _without_cel(found)
    text = string.Template((deploy / "join" / "manifest.yaml").read_text()).substitute(namespace=namespace)
    for found in yaml.safe_load_all(text):
        option = found["metadata"].get("annotations", {}).get(_OPTION)
        if option not in off:
            yield found
    if workloads:
        yield _join_secret(workloads.token, namespace)
        for found in yaml.safe_load_all((deploy / "join" / "workloads.yaml").read_text()):
            yield _filled(found, _values(workloads, namespace))


def _join_secret(token: str, namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": _JOIN_SECRET, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "kubegems"}},
        "data": {"token": base64.b64encode(token.encode()).decode()},
    }


def _values(workloads: Workloads, namespace: str) -> dict[str, Any]:
    def ports(numbers: tuple[int, ...]) -> list[Object]:
        return [{"protocol": "TCP", "port": number} for number in numbers]

    return {
        "namespace": namespace,
        "image": workloads.image,
        "ca_hash": workloads.ca_hash,
        "enrolment_address": workloads.enrolment_address,
        "edge_url": workloads.edge_url,
        "one_port": "" if workloads.enrolment_address else "true",
        "api_server_ports": ports(workloads.api_server_ports),
        "hub_ports": ports(workloads.hub_ports),
    }


def _filled(found: Any, values: dict[str, Any]) -> Any:
    """Fills a read document, not its text, so that no value can say more than a value; a variable without one goes."""
    if isinstance(found, dict):
        return {key: _filled(value, values) for key, value in found.items()}
    if isinstance(found, list):
        items = [_filled(item, values) for item in found]
        return [item for item in items if not (isinstance(item, dict) and item.get("value") == "")]
    hole = _HOLE.fullmatch(found) if isinstance(found, str) else None
    return values[hole[1]] if hole else found


def _without_cel(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _without_cel(value) for key, value in found.items() if key != "x-kubernetes-validations"}
    if isinstance(found, list):
        return [_without_cel(item) for item in found]
    return found
