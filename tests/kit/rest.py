"""A user of the REST API, as a test sees it: signs in, calls, streams."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CALL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: HTTP status, headers, decoded body."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def reason(self) -> str:
        """Reason of an error's ErrorInfo; empty for none."""
        details = self.body.get("error", {}).get("details", []) if isinstance(self.body, dict) else []
        return next((str(d["reason"]) for d in details if "reason" in d), "")

    @property
    def fields(self) -> dict[str, str]:
        """Field violations of an error: path → description."""
        details = self.body.get("error", {}).get("details", []) if isinstance(self.body, dict) else []
        return {v["field"]: v["description"] for d in details for v in d.get("fieldViolations", [])}

    def ok(self) -> Any:
        """The body; fails the test when the call failed."""
        assert self.status < 300, f"{self.status}: {self.body}"
        return self.body


@dataclass(slots=True)
class User:
    """One signed-in user, or nobody yet."""

    base: str
    tls: ssl.SSLContext
    session: aiohttp.ClientSession
    token: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One call; `path` starts behind `/api/v1`, or is absolute when it starts with `//`."""
        url = self.base + (path[1:] if path.startswith("//") else "/api/v1" + path)
        sent = self._headers() | {name.replace("_", "-"): value for name, value in headers.items()}
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self.session.request(method, url, data=data, headers=sent, ssl=self.tls, timeout=timeout) as reply:
            raw = await reply.read()
            decoded = json.loads(raw) if "json" in reply.headers.get("Content-Type", "") else raw.decode(errors="replace")
            return Answer(reply.status, dict(reply.headers), decoded)

    async def get(self, path: str) -> Any:
        """The body of a GET that must succeed."""
        return (await self.call("GET", path)).ok()

    async def post(self, path: str, body: Any = None) -> Any:
        """The body of a POST that must succeed."""
        return (await self.call("POST", path, body or {})).ok()

    async def put(self, path: str, body: Any) -> Any:
        """The body of a PUT that must succeed."""
        return (await self.call("PUT", path, body)).ok()

    async def delete(self, path: str) -> Any:
        """The body of a DELETE that must succeed."""
        return (await self.call("DELETE", path)).ok()

    async def sign_in(self, username: str, password: str) -> User:
        """Another user on the same connection pool."""
        answer = await User(self.base, self.tls, self.session).call("POST", "/sessions", {"username": username, "password": password})
        return User(self.base, self.tls, self.session, answer.ok()["accessToken"])

    async def events(self, path: str) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a server stream as SSE, without limit of time."""
        headers = self._headers() | {"Accept": "text/event-stream"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_SECONDS)
        async with self.session.get(self.base + "/api/v1" + path, headers=headers, ssl=self.tls, timeout=timeout) as reply:
            assert reply.status == 200, await reply.text()
            assert reply.headers["Content-Type"].startswith("text/event-stream")
            async for line in reply.content:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    assert "error" not in event, event
                    yield event

    def _headers(self) -> dict[str, str]:
        return self.headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


@asynccontextmanager
async def nobody(base: str, ca_file: Path) -> AsyncIterator[User]:
    """A client that has not signed in."""
    tls = ssl.create_default_context(cafile=str(ca_file))
    async with aiohttp.ClientSession(auto_decompress=True) as session:
        yield User(base.rstrip("/"), tls, session)
