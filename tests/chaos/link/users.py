"""Users who never stop asking who they are, and one whose right is taken away again and again."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.link.rig import Doors
from tests.e2e.world import PASSWORD
from tests.kit.rest import User

REVIEWS = "/k8s/clusters/local/apis/authentication.k8s.io/v1/selfsubjectreviews"
SECONDS = aiohttp.ClientTimeout(total=20)
SILENCE = 20.0
AWAY = (aiohttp.ClientError, TimeoutError, OSError)
REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}


@dataclass
class Person:
    """Someone who signs in again whenever the token has ended, and goes to the other gateway when one does not answer.

    Attributes:
        doors: the gateways.
        uid: of the account, once it was read.
        turn: which of the gateways is asked.
    """

    anyone: User
    doors: Doors
    name: str
    password: str = PASSWORD
    uid: str = ""
    token: str = ""
    turn: int = 0

    async def call(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """Status and body of one call; raises one of AWAY."""
        try:
            status, answer = await self._call(method, path, body, headers or {})
        except AWAY:
            self.turn += 1
            raise
        if status in (502, 503, 504):
            self.turn += 1
        return status, answer

    async def _call(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        sent = {**await self._signed(), **headers}
        session, base = self.anyone.session, self.doors.url(self.turn)
        async with session.request(method, base + path, json=body, headers=sent, ssl=self.anyone.tls, timeout=SECONDS) as reply:
            raw = await reply.read()
            if reply.status == 401:
                self.token = ""
            try:
                return reply.status, json.loads(raw) if "json" in reply.headers.get("Content-Type", "") and raw else {}
            except ValueError as error:
                raise AssertionError(
                    f"{self.name}'s {method} {path} got {reply.status} and a torn body as if whole: {raw[-200:]!r}"
                ) from error

    async def insist(self, method: str, path: str, body: Any = None, *, key: str = "", within: float = 90) -> Any:
        """Asks, with one idempotency key, until there is an answer that is not "not now"."""
        until = time.monotonic() + within
        last: Any = None
        while time.monotonic() < until:
            try:
                status, last = await self.call(method, "/api/v1" + path, body, headers={"Idempotency-Key": key} if key else {})
                if status < 300:
                    return last
                assert status in (401, 429, 499, 500, 502, 503, 504) or (status == 404 and method == "DELETE"), f"{status}: {last}"
                if status == 404:
                    return last
            except AWAY as error:
                last = error
            await asyncio.sleep(0.3)
        raise AssertionError(f"{method} {path}: no answer within {within} s, last {last!r}")

    @asynccontextmanager
    async def streaming(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that goes on; raises one of AWAY when there is none or when it breaks off."""
        headers, timeout = await self._signed(), aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE)
        url = self.doors.url(self.turn) + path
        async with self.anyone.session.get(url, headers=headers, ssl=self.anyone.tls, timeout=timeout) as reply:
            self._look(reply.status, 200)
            yield reply

    @asynccontextmanager
    async def upgraded(self, path: str, protocol: str) -> AsyncIterator[tuple[str, aiohttp.ClientWebSocketResponse]]:
        """A connection of raw bytes and the gateway it goes to; raises one of AWAY when there is none or when it breaks off."""
        headers, url = await self._signed(), self.doors.url(self.turn)
        try:
            async with asyncio.timeout(SILENCE):
                socket = await self.anyone.session.ws_connect(url + path, protocols=(protocol,), headers=headers, ssl=self.anyone.tls)
        except aiohttp.WSServerHandshakeError as error:
            self._look(error.status, 101)
            raise
        try:
            yield url, socket
        finally:
            await socket.close()

    def _look(self, status: int, wanted: int) -> None:
        if status != wanted:
            self.token = "" if status == 401 else self.token  # a long run outlives a token
            raise aiohttp.ClientConnectionError(f"{status}")

    async def _signed(self) -> dict[str, str]:
        if not self.token:
            await self._sign_in()
        return {"Authorization": f"Bearer {self.token}"}

    async def _sign_in(self) -> None:
        body = {"username": self.name, "password": self.password}
        url, tls = f"{self.doors.url(self.turn)}/api/v1/sessions", self.anyone.tls
        async with self.anyone.session.post(url, json=body, ssl=tls, timeout=SECONDS) as reply:
            if reply.status >= 300:
                raise aiohttp.ClientConnectionError(f"sign-in {reply.status}")
            self.token = (await reply.json())["accessToken"]


@dataclass
class Asking:
    """A person who asks the API server who it takes him for, and for what is another's.

    Attributes:
        person: who asks.
        groups: all that he may be sent as.
        forbidden: a path that must never be answered.
        wrong: what must not have happened.
        seen: answers, by kind.
    """

    person: Person
    groups: set[str]
    forbidden: str
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """For ever."""
        for turn in itertools.count():
            try:
                if turn % 3:
                    await self._who()
                else:
                    await self._forbidden()
            except AWAY as error:
                self.seen[type(error).__name__] += 1
            await asyncio.sleep(0.25)

    async def _who(self) -> None:
        status, body = await self.person.call("POST", REVIEWS, REVIEW)
        self.seen[str(status)] += 1
        if status != 201:
            return
        info = body["status"]["userInfo"]
        ours = {group for group in info.get("groups", []) if group.startswith("gems:")}
        told = (info.get("username"), info.get("uid"))
        if told != (f"gems:user:{self.person.name}", self.person.uid) or ours != self.groups:
            self.wrong.append(f"{self.person.name} was taken for {info}")

    async def _forbidden(self) -> None:
        status, body = await self.person.call("GET", self.forbidden)
        self.seen[f"other's {status}"] += 1
        if status < 400:
            self.wrong.append(f"{self.person.name} read {self.forbidden}: {str(body)[:200]}")
