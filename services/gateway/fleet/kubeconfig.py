"""A kubeconfig that reaches a cluster through the hub."""

from __future__ import annotations

import base64

import yaml


def render(*, edge_url: str, ca: str, cluster: str, username: str, token: str) -> str:
    """YAML for kubectl.

    Args:
        edge_url: the hub's REST edge, `https://host:port`.
        ca: the hub's CA (PEM).
        cluster: name of the cluster.
        username: whose it is.
        token: bearer token, good for this cluster alone.
    """
    user = f"{username}@kubegems"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster,
        "clusters": [
            {
                "name": cluster,
                "cluster": {
                    "server": f"{edge_url.rstrip('/')}/k8s/clusters/{cluster}",
                    "certificate-authority-data": base64.b64encode(ca.encode()).decode(),
                },
            }
        ],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
    }
    return yaml.safe_dump(content, sort_keys=False)
