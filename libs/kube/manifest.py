"""Manifest: what a cluster's admin applies so that the cluster can join (CRDs, roles, service accounts, bindings).

Read from `deploy/crds` and `deploy/join/manifest.yaml`, rendered for a server's version. It holds no secret and nothing
of one cluster: the join token travels apart from it.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

NAMESPACE = "kubegems-system"
_DEPLOY = Path(__file__).parents[2] / "deploy"
_OPTION = "gems.kubegems.io/optional"
_CEL_IN_CRDS = (1, 23)
_ADMISSION_POLICIES = (1, 30)


def render(
    *,
    without_cluster_admin: bool = False,
    kubernetes_version: tuple[int, int] | None = None,
    namespace: str = NAMESPACE,
    deploy: Path = _DEPLOY,
) -> str:
    """The manifest as YAML documents, in the order they must be applied.

    Args:
        without_cluster_admin: leaves out the binding that makes KubeGems' platform admins cluster admins.
        kubernetes_version: major and minor of the server; None renders for a current one. Below 1.23 the CRDs come
            without CEL rules (the controller checks the same), below 1.30 the admission policy is left out.
        namespace: where the agent and the controller live.
        deploy: folder that holds `crds` and `join`.
    """
    objects = list(documents(
        without_cluster_admin=without_cluster_admin, kubernetes_version=kubernetes_version, namespace=namespace, deploy=deploy
    ))  # fmt: skip
    return yaml.safe_dump_all(objects, sort_keys=False, width=1000)


def documents(
    *,
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


def _without_cel(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _without_cel(value) for key, value in found.items() if key != "x-kubernetes-validations"}
    if isinstance(found, list):
        return [_without_cel(item) for item in found]
    return found
