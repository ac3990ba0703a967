"""Watch: one watch connection, as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import orjson

from libs.faults import Unavailable
from libs.kube import errors
from libs.kube.client import KubeClient
from libs.kube.resources import Resource

SILENCE = 90.0  # seconds; the server sends a bookmark about every 60
OPEN = "OPEN"
_MAX_LINE = 16 << 20  # bytes; etcd refuses objects far smaller than this


class Event(NamedTuple):
    """ADDED, MODIFIED, DELETED or BOOKMARK and the object; OPEN, without one, once the server has said yes."""

    type: str
    object: dict[str, Any]


async def watch(
    client: KubeClient, resource: Resource, namespace: str | None = None, *, resource_version: str, seconds: int = 300,
    silence: float = SILENCE, label_selector: str = "", field_selector: str = "",
) -> AsyncGenerator[Event, None]:  # fmt: skip
    """Events after a resource version, until the server ends the watch after `seconds`.

    Raises Expired for a 410, as status or as ERROR event, DeadlineExceeded after `silence` seconds without a byte,
    other Faults as they come.
    """
    query = {
        "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version, "timeoutSeconds": str(seconds),
        "labelSelector": label_selector, "fieldSelector": field_selector,
    }  # fmt: skip
    limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence)
    async with client.request("GET", resource.path(namespace=namespace), query=query, limits=limits) as response:
        yield Event(OPEN, {})
        async for line in _lines(response.content):
            event = orjson.loads(line)
            if event["type"] == "ERROR":
                raise errors.from_status(event["object"])
            yield Event(event["type"], event["object"])


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk if rest else chunk).split(b"\n")
        for line in whole:
            if line:
                yield line
        if len(rest) > _MAX_LINE:
            raise Unavailable("the API server sent a watch event without end")
