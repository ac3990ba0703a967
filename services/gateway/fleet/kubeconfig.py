"""A kubeconfig that reaches clusters through the hub."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_INSTALL = "Put deploy/kubectl/kubectl_gems.py on the PATH as kubectl-gems, then run: kubectl-gems login {url} --ca-file <the hub's CA>"


def render(*, edge_url: str, ca: str, username: str, clusters: Sequence[str], tokens: Mapping[str, str] | None) -> str:
    """YAML for kubectl; the first cluster is the current one.

    Args:
        edge_url: the hub's REST edge, `https://host:port`.
        ca: the hub's CA (PEM).
        username: whose it is.
        clusters: names of the clusters.
        tokens: bearer token by cluster, each good there alone; None: kubectl-gems is asked for a token each time.
    """
    url = edge_url.rstrip("/")
    user = f"{username}@kubegems"
    several = tokens is not None and len(clusters) > 1
    users = {name: f"{user}/{name}" if several else user for name in clusters}
    found: dict[str, dict[str, Any]] = {}
    for name in clusters:
        found[users[name]] = {"token": tokens[name]} if tokens is not None else {"exec": _exec(url)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": clusters[0] if clusters else "",
        "clusters": [{"name": name, "cluster": _cluster(url, ca, name)} for name in clusters],
        "users": [{"name": name, "user": value} for name, value in found.items()],
        "contexts": [{"name": name, "context": {"cluster": name, "user": users[name]}} for name in clusters],
    }
    return yaml.safe_dump(content, sort_keys=False)


def _cluster(url: str, ca: str, name: str) -> dict[str, str]:
    return {"server": f"{url}/k8s/clusters/{name}", "certificate-authority-data": base64.b64encode(ca.encode()).decode()}


def _exec(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "kubectl-gems",
        "args": ["token", url],
        "interactiveMode": "Never",
        "installHint": _INSTALL.format(url=url),
    }
