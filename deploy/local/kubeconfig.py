"""Kubeconfig files: one cluster, one user, one context."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from libs.crypt import ca


def write(path: Path, *, server: str, authority: Path, token: str, name: str = "local", namespace: str = "default") -> Path:
    """Writes a kubeconfig (0600) that signs in by a token."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [
            {
                "name": name,
                "cluster": {"server": server, "certificate-authority-data": base64.b64encode(authority.read_bytes()).decode()},
            }
        ],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
    }
    ca.write_private(path, yaml.safe_dump(content, sort_keys=False))
    return path


def token(path: Path) -> str:
    """The token that a kubeconfig of ours signs in with."""
    return str(yaml.safe_load(path.read_text())["users"][0]["user"]["token"])


def rewrite(source: Path, path: Path, *, token: str, namespace: str) -> Path:
    """Writes a kubeconfig for the same cluster and another account."""
    content = yaml.safe_load(source.read_text())
    context = next(c["context"] for c in content["contexts"] if c["name"] == content["current-context"])
    cluster = next(c for c in content["clusters"] if c["name"] == context["cluster"])
    if "certificate-authority" in cluster["cluster"]:  # a path of the machine it came from
        authority = (source.parent / cluster["cluster"].pop("certificate-authority")).read_bytes()
        cluster["cluster"]["certificate-authority-data"] = base64.b64encode(authority).decode()
    content["clusters"] = [cluster]
    content["users"] = [{"name": context["user"], "user": {"token": token}}]
    content["contexts"] = [{"name": content["current-context"], "context": context | {"namespace": namespace}}]
    ca.write_private(path, yaml.safe_dump(content, sort_keys=False))
    return path
