"""What users keep doing while the link breaks: bodies, watches and upgraded connections, each marked with whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.link.users import AWAY, Person

POD = "chaos"
_BODY = 200_000
_PATCH = {"Content-Type": "application/apply-patch+yaml"}
_PROTOCOL = "v4.channel.k8s.io"
_STDIN, _STDOUT = b"\0", b"\1"
_COMMAND = "&".join(f"command={word}" for word in ("/usr/bin/timeout", "120", "/bin/cat"))  # KWOK does not end it with its connection
_PAUSE = 0.3


@dataclass
class Stream:
    """A watch or an exec of one's own namespace, opened again whenever it ends.

    Attributes:
        live: whether it is open, and has been answered.
        url: the gateway that it went to last.
        ended: when (monotonic) it ended last.
        seen: how often what.
        wrong: what must not have come over it.
    """

    person: Person
    namespace: str
    kind: str
    live: bool = False
    url: str = ""
    ended: float = float("-inf")
    over: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Until it is over, or for ever."""
        follow = self._watch if self.kind == "watch" else self._exec
        while not self.over:
            try:
                await follow()
            except AWAY:
                self.person.turn += 1
            finally:
                if self.live:
                    self.live, self.ended = False, time.monotonic()
            await asyncio.sleep(_PAUSE)

    def _is_live(self) -> None:
        self.live = True
        self.seen["answered"] += 1

    async def _watch(self) -> None:
        """Every object must be of this namespace, and marked by whoever works there."""
        path = f"/k8s/clusters/local/api/v1/namespaces/{self.namespace}/configmaps?watch=true"
        async with self.person.streaming(path) as reply:
            self.url = str(reply.url.origin())
            async for line in reply.content:
                if not line.endswith(b"\n"):
                    return  # it was ended within an event
                if not self.live:
                    self._is_live()
                event = json.loads(line)
                found = event["object"]["metadata"].get("namespace")
                if event["type"] != "ERROR" and found != self.namespace:
                    self.wrong.append(f"{self.person.name}'s watch of {self.namespace} was sent {event['type']} of {found}")
                self.seen["events"] += 1

    async def _exec(self) -> None:
        """What is typed comes back, and nothing else."""
        path = f"/k8s/clusters/local/api/v1/namespaces/{self.namespace}/pods/{POD}/exec?{_COMMAND}&stdin=true&stdout=true"
        async with self.person.upgraded(path, _PROTOCOL) as (url, socket):
            self.url = url
            for number in itertools.count():
                typed = f"{self.person.name} types {number}\n".encode()
                await socket.send_bytes(_STDIN + typed)
                shown = await _shown(socket, len(typed))
                if not typed.startswith(shown):
                    self.wrong.append(f"{self.person.name} typed {typed!r} and was shown {shown!r}")
                if len(shown) < len(typed):
                    return
                if not self.live:
                    self._is_live()
                self.seen["echoes"] += 1
                more = await _more(socket)
                if more is None:
                    return
                if more:
                    self.wrong.append(f"{self.person.name} typed {typed!r} and was shown {more!r} besides")


async def _shown(socket: aiohttp.ClientWebSocketResponse, count: int) -> bytes:
    """Output until there is so much of it, or the connection ends."""
    found = b""
    while len(found) < count:
        message = await socket.receive(timeout=20)
        if message.type is not aiohttp.WSMsgType.BINARY:
            break
        if message.data[:1] == _STDOUT:
            found += message.data[1:]
    return found


async def _more(socket: aiohttp.ClientWebSocketResponse) -> bytes | None:
    """What comes within a pause, in which nothing may; None when the connection ends."""
    with contextlib.suppress(TimeoutError):
        message = await socket.receive(timeout=_PAUSE)
        return bytes(message.data[1:]) if message.type is aiohttp.WSMsgType.BINARY else None
    return b""


@dataclass
class Bodies:
    """Large bodies that come back whole and as sent, and small changes for the watches.

    Attributes:
        wrong: what must not have come back.
        seen: how often what.
    """

    person: Person
    namespace: str
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """For ever."""
        for number in itertools.count():
            try:
                await self._send(f"{self.person.name}'s body {number}", _BODY, dry=True)
                await self._send(f"{self.person.name}'s mark {number}", 0)
            except AWAY as error:
                self.seen[type(error).__name__] += 1
            await asyncio.sleep(_PAUSE)

    async def _send(self, mark: str, size: int, *, dry: bool = False) -> None:
        name = "body" if dry else "mark"
        path = f"/k8s/clusters/local/api/v1/namespaces/{self.namespace}/configmaps/{name}"
        data = {"mark": mark, "filling": random.Random(mark).randbytes(size // 2).hex()}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        status, answer = await self.person.call(
            "PATCH", f"{path}?fieldManager=chaos&force=true" + ("&dryRun=All" if dry else ""), body, headers=_PATCH
        )
        self.seen[f"{name} {status}"] += 1
        if status < 300 and (answer.get("data"), answer["metadata"]["namespace"]) != (data, self.namespace):
            self.wrong.append(f"{self.person.name} sent {mark} and got {str(answer)[:300]}")
