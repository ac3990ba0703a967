"""Recorder: Kubernetes Events about our objects, for `kubectl describe` and the dashboard."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import suppress
from typing import Literal

from libs import log
from libs.clock import Clock
from libs.faults import AlreadyExists, Fault
from libs.kube import KubeClient, Resource
from libs.kube.resources import EVENTS
from services.controller.domain import CONTROLLER, Object

_log = log.get(__name__)
_NAMESPACE = "default"  # where Kubernetes keeps Events about what lives in no namespace
_REMEMBERED = 1000
_MAX_MESSAGE = 1024


class Recorder:
    """Writes Events; the same one again raises its count. An Event that cannot be written is only logged."""

    def __init__(self, client: KubeClient, clock: Clock, *, identity: str) -> None:
        self._client = client
        self._clock = clock
        self._identity = identity
        self._counts: OrderedDict[str, int] = OrderedDict()

    async def record(
        self, resource: Resource, found: Object, reason: str, message: str, *, kind: Literal["Normal", "Warning"] = "Normal"
    ) -> None:
        """Records one Event about an object."""
        metadata = found["metadata"]
        digest = hashlib.sha256(f"{metadata['uid']}/{reason}/{message}/{self._identity}".encode()).hexdigest()[:16]
        name = f"{metadata['name'][:200]}.{digest}"
        count = self._counted(name)
        now = self._clock.now().isoformat(timespec="seconds").replace("+00:00", "Z")
        _log.info("environment.event", kind=resource.kind, name=metadata["name"], reason=reason, note=message)
        try:
            if count > 1:
                await self._client.patch(EVENTS, name, {"count": count, "lastTimestamp": now}, _NAMESPACE)
                return
            with suppress(AlreadyExists):
                await self._client.create(EVENTS, self._event(resource, found, name, reason, message, kind, now), _NAMESPACE)
        except Fault as fault:
            self._counts.pop(name, None)  # also when the server has let an old Event go: the next one is new
            _log.warning("event.lost", reason=fault.reason, problem=fault.message)

    def _counted(self, name: str) -> int:
        self._counts[name] = count = self._counts.pop(name, 0) + 1
        if len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        return count

    def _event(  # noqa: PLR0917 -- the parts of an Event
        self, resource: Resource, found: Object, name: str, reason: str, message: str, kind: str, now: str
    ) -> Object:
        metadata = found["metadata"]
        return {
            "metadata": {"name": name, "namespace": _NAMESPACE},
            "involvedObject": {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "type": kind,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": CONTROLLER, "host": self._identity[:63]},
        }
