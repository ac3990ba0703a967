"""Trim: what the agent's copy keeps of an object, about a tenth of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from libs.kube import Resource, resources
from services.agent.observed.columns import columns_of

Object = dict[str, Any]
_MOST_LABELS = 64
_OURS = frozenset(resources.OURS)
_GEMS = "gems.kubegems.io/"


def trim(resource: Resource) -> Callable[[Object], Object]:
    """Makes objects of a kind small: identity, labels and columns; of our own kinds also what status is made of."""
    extra = _ours if resource in _OURS else _namespace if resource == resources.NAMESPACES else _nothing

    def trimmed(found: Object) -> Object:
        metadata = found["metadata"]
        kept: Object = {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion") if name in metadata}
        kept["labels"] = _limited(metadata.get("labels") or {})
        return {"metadata": kept, "columns": columns_of(resource.key, found)} | extra(found, kept)

    return trimmed


def _limited(labels: Mapping[str, str]) -> dict[str, str]:
    """At most 64 labels, ours first, so that those which place an object are never the ones left out."""
    if len(labels) <= _MOST_LABELS:
        return dict(labels)
    names = sorted(labels, key=lambda name: (not name.startswith(_GEMS), name))[:_MOST_LABELS]
    return {name: labels[name] for name in names}


def _nothing(_found: Object, _kept: Object) -> Object:
    return {}


def _namespace(found: Object, _kept: Object) -> Object:
    """Why a namespace is still going."""
    conditions = (found.get("status") or {}).get("conditions") or []
    return {"holding": [f"{c.get('reason', '')}: {c.get('message', '')}" for c in conditions if c.get("status") == "True"][:8]}


def _ours(found: Object, kept: Object) -> Object:
    metadata = found["metadata"]
    kept |= {name: metadata[name] for name in ("generation", "deletionTimestamp", "finalizers") if name in metadata}
    kept["annotations"] = {name: value for name, value in (metadata.get("annotations") or {}).items() if name.startswith(_GEMS)}
    return {"status": found.get("status") or {}}
