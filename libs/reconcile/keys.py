"""Keys: which key a changed object concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Object = Mapping[str, Any]
Keys = Callable[[Object], Iterable[str]]


def own_name(found: Object) -> Iterable[str]:
    """The object itself."""
    return (found["metadata"]["name"],)


def namespace(found: Object) -> Iterable[str]:
    """The namespace it lives in; none for what lives in no namespace."""
    name = found["metadata"].get("namespace")
    return (name,) if name else ()


def label(name: str) -> Keys:
    """The value of a label; none without it."""

    def keys(found: Object) -> Iterable[str]:
        value = (found["metadata"].get("labels") or {}).get(name)
        return (value,) if value else ()

    return keys


def controller(kind: str) -> Keys:
    """The owner that controls it, when it is of `kind`."""

    def keys(found: Object) -> Iterable[str]:
        owners = found["metadata"].get("ownerReferences") or ()
        return tuple(owner["name"] for owner in owners if owner.get("controller") and owner["kind"] == kind)

    return keys
