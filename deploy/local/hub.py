"""The hub as its admin uses it: over REST, with the password from its file."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from deploy.local.errors import LocalError

_SECONDS = 30.0
_NOT_FOUND, _REFUSED = 404, 401


class SignInRefused(LocalError):
    """The password in the file is no longer the admin's."""


class Hub:
    """A session of the platform admin; use it as a context.

    Args:
        url: the gateway's address.
        authority: the hub's CA.
        password_file: the admin's password.
    """

    def __init__(self, url: str, authority: Path, password_file: Path) -> None:
        self._url = url
        self._tls = ssl.create_default_context(cafile=authority)
        self._password_file = password_file
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS))
        self._token = ""

    async def __aenter__(self) -> Self:
        credentials = {"username": "admin", "password": self._password_file.read_text().strip()}
        try:
            self._token = (await self._call("POST", "/sessions", credentials))["accessToken"]
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        await self._session.close()

    async def cluster(self, name: str) -> dict[str, Any]:
        """The cluster, made when it is not there."""
        found = await self._call("GET", f"/clusters/{name}", none_when=_NOT_FOUND)
        if found is None:
            body = {"clusterId": name, "cluster": {"displayName": name.replace("-", " ").title()}}
            found = await self._call("POST", "/clusters", body)
        return dict(found)

    async def join_token(self, name: str) -> str:
        """A token by which an agent joins a cluster, `{id}.{secret}`."""
        return str((await self._call("POST", f"/clusters/{name}/joinTokens", {}))["token"])

    async def kubeconfig(self, name: str) -> str:
        """The admin's kubeconfig for a cluster, through the hub; good for as long as one may be."""
        return str(await self._call("GET", f"/clusters/{name}:kubeconfig?ttlSeconds={12 * 3600}"))

    async def _call(self, method: str, path: str, body: object = None, none_when: int = 0) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            async with self._session.request(method, f"{self._url}/api/v1{path}", json=body, headers=headers, ssl=self._tls) as reply:
                if reply.status == none_when:
                    return None
                content = await (reply.json() if "json" in reply.headers.get("Content-Type", "") else reply.text())
                if reply.status < 300:  # noqa: PLR2004 -- success
                    return content
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LocalError(f"the hub did not answer {method} {path}: {error!r}") from None
        message = content.get("error", {}).get("message", "") if isinstance(content, dict) else content
        kind = SignInRefused if (reply.status, path) == (_REFUSED, "/sessions") else LocalError
        raise kind(f"the hub answered {reply.status} to {method} {path}: {message}")
