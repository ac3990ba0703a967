"""KubeClient: requests to one API server."""
# ruff: noqa: PLR0917 -- a deadline is an argument of every request here, kept by the HTTP client itself

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from libs.faults import DeadlineExceeded, Unavailable
from libs.kube import errors
from libs.kube.connection import Connection
from libs.kube.principal import Principal
from libs.kube.resources import Resource

Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML; the server takes no other type for server-side apply
_JSON = "application/json"
TIMEOUT = 30.0  # seconds for one request
_CONNECT_TIMEOUT = 10.0
_PAGE = 500
_READ_BUFFER = 1 << 18
_UNAUTHORIZED = 401
_FIRST_ERROR = 400


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `more` is the continue token, empty at the end."""

    items: list[Object]
    resource_version: str
    more: str


class KubeClient:
    """Reads and writes objects as dictionaries.

    All methods raise Faults: Unavailable and DeadlineExceeded when the server is away or slow (nothing is known of a
    write then), else what its `Status` says (see `libs.kube.errors`). `impersonate` names the user a call acts as.
    """

    def __init__(self, connection: Connection, *, user_agent: str = "kubegems") -> None:
        self.connection = connection
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": user_agent},
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=_CONNECT_TIMEOUT),
            read_bufsize=_READ_BUFFER,
            auto_decompress=True,
        )

    @classmethod
    async def from_kubeconfig(cls, path: Path, *, context: str | None = None, user_agent: str = "kubegems") -> Self:
        """A client for the cluster that a kubeconfig names; ValueError when it is not usable."""
        return cls(await Connection.from_kubeconfig(path, context=context), user_agent=user_agent)

    @classmethod
    async def in_cluster(cls, *, user_agent: str = "kubegems") -> Self:
        """A client for the cluster around this pod; ValueError outside one."""
        return cls(await Connection.in_cluster(), user_agent=user_agent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *,
        impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> Object:  # fmt: skip
        """One object."""
        return await self._json("GET", resource.path(name, namespace), impersonate=impersonate, timeout=timeout)

    async def page(
        self, resource: Resource, namespace: str | None = None, *, more: str = "", limit: int = _PAGE,
        label_selector: str = "", field_selector: str = "", resource_version: str = "",
        impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> Page:  # fmt: skip
        """One page of a list; `limit` 0 asks for all at once. Expired when the continue token is too old."""
        query = {
            "limit": str(limit) if limit else "", "continue": more, "labelSelector": label_selector,
            "fieldSelector": field_selector, "resourceVersion": resource_version,
        }  # fmt: skip
        body = await self._json("GET", resource.path(namespace=namespace), query=query, impersonate=impersonate, timeout=timeout)
        metadata = body.get("metadata") or {}
        return Page(body.get("items") or [], metadata.get("resourceVersion", ""), metadata.get("continue", ""))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = "",
        page_size: int = _PAGE, impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> AsyncIterator[Object]:  # fmt: skip
        """All objects, fetched page by page; each lacks `kind` and `apiVersion`, as in any list. `timeout` is for each page."""
        more = ""
        while True:
            page = await self.page(
                resource, namespace, more=more, limit=page_size, label_selector=label_selector, field_selector=field_selector,
                impersonate=impersonate, timeout=timeout,
            )  # fmt: skip
            for item in page.items:
                yield item
            if not (more := page.more):
                return

    async def create(
        self, resource: Resource, body: Object, namespace: str | None = None, *,
        subresource: str = "", name: str = "", impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> Object:  # fmt: skip
        """Creates an object, or posts to a subresource of `name`. AlreadyExists when the name is taken."""
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        path = resource.path(name, namespace, subresource)
        return await self._json("POST", path, body=orjson.dumps(body), impersonate=impersonate, timeout=timeout)

    async def replace(
        self, resource: Resource, body: Object, *, subresource: str = "", impersonate: Principal | None = None, timeout: float = TIMEOUT
    ) -> Object:
        """Writes a whole object over the one with its name. Conflict when its resourceVersion is not current."""
        metadata = body["metadata"]
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        path = resource.path(metadata["name"], metadata.get("namespace"), subresource)
        return await self._json("PUT", path, body=orjson.dumps(body), impersonate=impersonate, timeout=timeout)

    async def apply(
        self, resource: Resource, body: Object, *, field_manager: str, force: bool = False, subresource: str = "",
        dry_run: bool = False, impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> Object:  # fmt: skip
        """Server-side apply of an object with its name (and namespace). Conflict when another manager owns a field, unless `force`d."""
        metadata = body["metadata"]
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        query = {"fieldManager": field_manager, "force": "true" if force else "", "dryRun": "All" if dry_run else ""}
        path = resource.path(metadata["name"], metadata.get("namespace"), subresource)
        return await self._json(
            "PATCH", path, query=query, body=orjson.dumps(body), content_type=_APPLY_PATCH, impersonate=impersonate, timeout=timeout
        )

    async def apply_status(self, resource: Resource, body: Object, *, field_manager: str, force: bool = True, **options: Any) -> Object:
        """Server-side apply of the status subresource."""
        return await self.apply(resource, body, field_manager=field_manager, force=force, subresource="status", **options)

    async def patch(
        self, resource: Resource, name: str, patch: Any, namespace: str | None = None, *, patch_type: str = MERGE_PATCH,
        subresource: str = "", field_manager: str = "", impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> Object:  # fmt: skip
        """A merge patch (a dictionary) or JSON patch (a list of operations, `patch_type=JSON_PATCH`)."""
        return await self._json(
            "PATCH", resource.path(name, namespace, subresource), query={"fieldManager": field_manager}, body=orjson.dumps(patch),
            content_type=patch_type, impersonate=impersonate, timeout=timeout,
        )  # fmt: skip

    async def patch_status(self, resource: Resource, name: str, patch: Any, namespace: str | None = None, **options: Any) -> Object:
        """The same on the status subresource."""
        return await self.patch(resource, name, patch, namespace, subresource="status", **options)

    async def delete(
        self, resource: Resource, name: str, namespace: str | None = None, *, uid: str = "", resource_version: str = "",
        propagation: str = "Background", grace_seconds: int | None = None,
        impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> Object:  # fmt: skip
        """Deletes an object, only the one with `uid` and `resource_version` where given (else Conflict). NotFound when it is gone."""
        preconditions = {key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if preconditions:
            options["preconditions"] = preconditions
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self._json(
            "DELETE", resource.path(name, namespace), body=orjson.dumps(options), impersonate=impersonate, timeout=timeout
        )

    async def get_path(
        self, path: str, *, query: Mapping[str, str] | None = None, impersonate: Principal | None = None, timeout: float = TIMEOUT
    ) -> Object:
        """The JSON object at a path such as `/version`."""
        return await self._json("GET", path, query=query, impersonate=impersonate, timeout=timeout)

    async def raw(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: bytes | None = None,
        content_type: str = _JSON, impersonate: Principal | None = None, timeout: float = TIMEOUT,
    ) -> bytes:  # fmt: skip
        """The bytes of a good answer."""
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT)
        async with self.request(
            method, path, query=query, body=body, content_type=content_type, impersonate=impersonate, limits=limits
        ) as response:
            return await response.read()

    async def _json(self, method: str, path: str, **options: Any) -> Object:
        found = orjson.loads(await self.raw(method, path, **options))
        assert isinstance(found, dict)
        return found

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: bytes | None = None,
        content_type: str = _JSON, impersonate: Principal | None = None, limits: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """A request whose good answer is read by the caller; errors, also while it is read, come as Faults."""
        try:
            response = await self._send(method, path, query or {}, body, content_type, impersonate, limits)
            if response.status == _UNAUTHORIZED and await self.connection.reload():
                response.release()
                response = await self._send(method, path, query or {}, body, content_type, impersonate, limits)
            async with response:
                if response.status >= _FIRST_ERROR:
                    raise errors.from_response(response.status, await response.read(), response.headers)
                yield response
        except TimeoutError as error:
            raise DeadlineExceeded(f"the cluster's API server did not answer {method} in time") from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise Unavailable("the cluster's API server cannot be reached, or does not speak HTTP") from error

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None,
        content_type: str, impersonate: Principal | None, limits: aiohttp.ClientTimeout | None,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        headers = CIMultiDict({"Accept": _JSON})
        if authorization := await self.connection.authorization():
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = content_type
        for name, value in impersonate.headers() if impersonate else ():
            headers.add(name, value)
        url = URL(self.connection.server + path, encoded=True).with_query({k: v for k, v in query.items() if v})
        return await self._session.request(
            method, url, headers=headers, data=body, timeout=limits, allow_redirects=False,
            ssl=self.connection.tls or True, server_hostname=self.connection.server_hostname,
        )  # fmt: skip
