"""A subscriber as a careful client is one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kubegems.messages.v1 import event_pb2, message_service_pb2
from libs.faults import Fault
from tests.integration.push.gateway import ACME, GLOBEX

if TYPE_CHECKING:
    from tests.integration.push.rig import Rig


@dataclass
class Viewer:
    """Keeps a view, resumes by token after a break, lists again at RESYNC."""

    rig: Rig
    user: str
    request: dict[str, Any]
    view: dict[tuple[str, str], str] = field(default_factory=dict)
    token: str = ""
    resyncs: list[str] = field(default_factory=list)
    kinds: list[Any] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    allowed: set[str] = field(default_factory=set)
    breaks: int = 0
    name: str = ""
    at: int | None = None

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self._follow()
            except Fault:
                self.breaks += 1
                await asyncio.sleep(0.1)

    async def _follow(self) -> None:
        fresh: dict[tuple[str, str], str] | None = None if self.token else {}
        asked = message_service_pb2.SubscribeRequest(snapshot=not self.token, resume_token=self.token, **self.request)
        async with aclosing(self.rig.subscribe(self.user, asked, self.at)) as events:
            async for event in events:
                self.kinds.append(event.kind)
                self.name = event.subscription or self.name
                if event.kind == event_pb2.Event.RESYNC:
                    self.resyncs.append(event.resync.reason)
                    self.token = ""
                    return  # what was skipped is seen by listing again
                if event.kind == event_pb2.Event.SNAPSHOT_END and fresh is not None:
                    self.view, fresh = fresh, None
                if event.kind == event_pb2.Event.CHANGE:
                    self._take(event.change, self.view if fresh is None else fresh)
                if event.kind == event_pb2.Event.SCOPE_REVOKED:
                    self._revoked(event.scope)
                if fresh is None and event.resume_token:
                    self.token = event.resume_token

    def _take(self, change: event_pb2.Change, into: dict[tuple[str, str], str]) -> None:
        if self.allowed and change.namespace not in self.allowed:
            self.foreign.append(f"{change.namespace}/{change.object}")
        key = (change.namespace, change.object)
        if change.verb == event_pb2.Change.DELETED:
            into.pop(key, None)
        else:
            into[key] = change.resource_version

    def _revoked(self, scope: str) -> None:
        namespace = {ACME.name: "acme", GLOBEX.name: "globex"}.get(scope)
        self.view = {key: version for key, version in self.view.items() if key[0] != namespace}
