"""Objects for tests."""

from __future__ import annotations

from typing import Any


def environment(name: str = "acme-shop-dev", *, annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """An Environment object as the hub derives it."""
    return {
        "metadata": {"name": name, "uid": "object-uid", "generation": 1, "annotations": annotations or {"gems.kubegems.io/uid": "row-uid"}},
        "spec": {"tenant": "acme", "project": "shop", "environment": "dev", "namespace": name, **spec},
    }


def namespace(name: str = "acme-shop-dev", *, uid: str = "ns-uid", **metadata: Any) -> dict[str, Any]:
    """A Namespace object."""
    return {"metadata": {"name": name, "uid": uid, **metadata}}
