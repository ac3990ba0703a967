"""Which trace a run belongs to: the change's own for the first look at a generation, a new one for all that follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from libs.kube import Resource
from libs.log import trace
from services.controller.domain import TRACEPARENT, Object


class Traces:
    """Remembers which generations have had their first run."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    @contextmanager
    def span(self, resource: Resource, found: Object) -> Iterator[None]:
        """Runs a block as the span of one reconcile."""
        metadata = found["metadata"]
        attributes = {"k8s.kind": resource.kind, "k8s.name": metadata["name"], "gems.generation": metadata["generation"]}
        with trace.span(f"{resource.kind}.reconcile", parent=self._parent(found) or None, attributes=attributes):
            yield

    def forget(self, uid: str) -> None:
        """Drops what is known of an object that is gone."""
        self._seen.pop(uid, None)

    def _parent(self, found: Object) -> str:
        metadata = found["metadata"]
        generation, observed = metadata["generation"], (found.get("status") or {}).get("observedGeneration", 0)
        if max(observed, self._seen.get(metadata["uid"], 0)) >= generation:
            return ""
        self._seen[metadata["uid"]] = generation
        return str((metadata.get("annotations") or {}).get(TRACEPARENT) or "")
