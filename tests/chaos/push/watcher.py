"""A subscriber of the chaos: follows an SSE stream through the gateway as docs/push.md tells clients to."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import aiohttp

from tests.chaos.push.hub import Hub
from tests.kit.gateway import PASSWORD

SILENCE_SECONDS = 30.0  # a heartbeat comes well within
Key = tuple[str, str]


@dataclass
class Allowed:
    """Where a user may see objects, and until when: seconds since the epoch by namespace."""

    until: dict[str, float] = field(default_factory=dict)
    always: frozenset[str] = frozenset()

    def at(self, namespace: str, sent: float) -> bool:
        """Whether an object of a namespace may have been sent then."""
        return namespace in self.always or sent <= self.until.get(namespace, float("-inf"))


@dataclass
class Watcher:
    """Keeps a view: resumes by token after a break, drops what is revoked, lists again at RESYNC.

    Attributes:
        allowed: where its user may see objects; None for everywhere.
        foreign: what it was sent nevertheless.
    """

    hub: Hub
    username: str
    query: str = ""
    allowed: Allowed | None = None
    view: dict[Key, tuple[str, str]] = field(default_factory=dict)
    token: str = ""
    resyncs: Counter[str] = field(default_factory=Counter)
    revoked: int = 0
    resumed: int = 0
    breaks: int = 0
    events: int = 0
    foreign: list[str] = field(default_factory=list)
    _access: str = ""

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self._follow()
            except (aiohttp.ClientError, OSError, TimeoutError, AssertionError):
                await asyncio.sleep(0.1)
            self.breaks += 1

    @property
    def versions(self) -> dict[Key, str]:
        """The view as the cluster's list is told."""
        return {key: version for key, (version, _) in self.view.items()}

    async def _follow(self) -> None:
        if not self._access:
            self._access = (await self.hub.nobody.sign_in(self.username, PASSWORD)).token
        path = "/messages:subscribe?resources=pods" + self.query
        self.resumed += bool(self.token)
        fresh: dict[Key, tuple[str, str]] | None = None if self.token else {}
        path += f"&resumeToken={self.token}" if self.token else "&snapshot=true"
        async with aclosing(self._events(path)) as events:
            async for event in events:
                self.events += 1
                into = self.view if fresh is None else fresh
                kind = event["kind"]
                if kind == "RESYNC":
                    self.resyncs[event["resync"]["reason"]] += 1
                    self.token = ""
                    return
                if kind == "SNAPSHOT_END" and fresh is not None and not event.get("scope"):
                    self.view, fresh = fresh, None
                if kind == "SCOPE_REVOKED":
                    self.revoked += 1
                    for key in [key for key, (_, environment) in into.items() if environment == event.get("scope", "")]:
                        del into[key]
                if kind == "CHANGE":
                    self._take(event, into)
                if fresh is None and event.get("resumeToken"):
                    self.token = event["resumeToken"]

    def _take(self, event: dict[str, Any], into: dict[Key, tuple[str, str]]) -> None:
        change = event["change"]
        namespace, name = change.get("namespace", ""), change["object"]
        sent = datetime.fromisoformat(event["sendTime"]).timestamp()
        if self.allowed is not None and not self.allowed.at(namespace, sent):
            self.foreign.append(f"{namespace}/{name} {change['verb']} at {sent:.3f}")
        if change["verb"] == "DELETED":
            into.pop((namespace, name), None)
        else:
            into[namespace, name] = (change["resourceVersion"], change.get("environment", ""))

    async def _events(self, path: str) -> AsyncGenerator[dict[str, Any], None]:
        user = self.hub.nobody
        headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {self._access}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_SECONDS)
        async with user.session.get(f"{user.base}/api/v1{path}", headers=headers, ssl=user.tls, timeout=timeout) as reply:
            if reply.status == 401:
                self._access = ""
            assert reply.status == 200, await reply.text()
            async for line in reply.content:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if event.get("error", {}).get("status") == "UNAUTHENTICATED":
                        self._access = ""
                    assert "error" not in event, event
                    yield event
