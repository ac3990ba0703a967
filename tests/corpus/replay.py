"""Sends recorded requests, directly or through the hub, and says what of two answers must be the same."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import yarl

from tests.corpus.corpus import Recorded

_SECONDS = 30.0
_WATCH_SECONDS = 1.5  # how long an answer without an end is read
_HEADERS = (
    "content-type", "content-encoding", "cache-control", "warning", "location", "allow", "etag", "last-modified", "retry-after",
    "upgrade", "connection", "sec-websocket-accept", "sec-websocket-protocol", "x-stream-protocol-version", "x-content-type-options",
)  # fmt: skip
_OWN = {
    "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "startTime", "lastTransitionTime", "lastUpdateTime", "time",
    "clusterIP", "clusterIPs", "nodePort", "nodeName", "token", "expirationTimestamp", "userInfo", "pod-template-hash",
    "kubectl.kubernetes.io/restartedAt", "deployment.kubernetes.io/revision",
}  # fmt: skip
_UID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_RANDOM = re.compile(rb"kube-api-access-[a-z0-9]{5}")
_STAMP = re.compile(rb"\x08\x08.{5}\x10\x00", re.DOTALL)  # meta/v1 Time in a message: seconds, nanoseconds 0
_VERSION = re.compile(rb"2[\x01-\x09][0-9]{1,9}")  # field 6 of ObjectMeta
_MAGIC = 6  # bytes before apiVersion and kind: `k8s\0`, a tag, their length
_MOVING = (b"Deployment", b"Pod", b"Job", b"Namespace", b"HorizontalPodAutoscaler")  # their status may be ahead in one of the two
PROTOBUF = "application/vnd.kubernetes.protobuf"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `headers` only those that matter, `body` as a client reads it."""

    status: int
    headers: dict[str, list[str]]
    body: bytes

    @property
    def kind(self) -> str:
        """Its media type, without parameters."""
        return next(iter(self.headers.get("content-type", [])), "").partition(";")[0]


@dataclass(frozen=True, slots=True)
class Side:
    """A way to the API server: `base` is `https://…` up to the API's own paths."""

    session: aiohttp.ClientSession
    base: str
    tls: ssl.SSLContext
    authorization: str

    async def send(self, recorded: Recorded, namespace: str) -> Answer:
        """One request with another namespace in it."""
        target, body = recorded.into(namespace)
        if recorded.watches and not recorded.upgrades:
            target = _from_the_start(target)
        url = yarl.URL(self.base + target, encoded=True)
        headers = [*recorded.headers, ("Authorization", self.authorization)]
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        request = self.session.request(recorded.method, url, data=body or None, headers=headers, ssl=self.tls, timeout=timeout)
        async with request as answer:
            matter = {name: sorted(answer.headers.getall(name)) for name in _HEADERS if name in answer.headers}
            if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return Answer(answer.status, matter, b"")
            return Answer(answer.status, matter, await _first(answer) if recorded.watches else await answer.read())


async def _first(answer: aiohttp.ClientResponse) -> bytes:
    """What of an endless answer comes at once."""
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(_WATCH_SECONDS):
            async for chunk in answer.content.iter_any():
                chunks.append(chunk)
    except TimeoutError:
        pass
    return b"".join(chunks)


def _from_the_start(target: str) -> str:
    """A watch at another time: its versions are of the cluster where it was recorded."""
    target = re.sub(r"([?&])resourceVersion=\d+", r"\1resourceVersion=0", target)
    return re.sub(r"([?&])timeoutSeconds=\d+", r"\1timeoutSeconds=1", target)


def masked(answer: Answer, namespace: str) -> Any:
    """The body without what two runs of the same change must differ in: ids, versions, times, addresses, a status that moves."""
    body = _RANDOM.sub(b"kube-api-access", _UID.sub(b"U", answer.body.replace(namespace.encode(), b"corpus-*")))
    if answer.kind == PROTOBUF:
        type_meta = body[: _MAGIC + body[_MAGIC - 1]]
        if any(kind in type_meta for kind in _MOVING):
            return type_meta
        return _VERSION.sub(b"2R", _STAMP.sub(b"T", body))
    if answer.kind != "application/json":
        return body
    value = json.loads(body)
    if value.get("kind", "").encode() in _MOVING:
        value["metadata"].pop("managedFields", None)  # a controller may have been there before in one of the two
    return _mask(value)


def _mask(value: Any) -> Any:
    if isinstance(value, list):
        return [_mask(item) for item in value if not _by_a_controller(item)]
    if isinstance(value, dict):
        moving = {"status"} if value.get("kind") != "Status" else set()
        kept = {key: _mask(item) for key, item in value.items() if key not in _OWN | moving}
        if "managedFields" in kept:  # ordered by a time in seconds
            kept["managedFields"].sort(key=json.dumps)
        return kept
    return value


def _by_a_controller(item: Any) -> bool:
    """An entry of managedFields for a status, which comes when it comes."""
    return isinstance(item, dict) and item.get("subresource") == "status"


def difference(direct: Answer, hub: Answer, bodies: tuple[Any, Any]) -> str:
    """What differs, in one line each; empty for nothing."""
    told = []
    if direct.status != hub.status:
        told.append(f"status {direct.status}, through the hub {hub.status} {hub.body[:200]!r}")
    if direct.headers != hub.headers:
        told.append(f"headers {direct.headers}, through the hub {hub.headers}")
    one, other = (body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies)
    if one != other:
        at = max(0, next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))) - 60)
        told.append(f"body at {at}: {one[at : at + 200]!r}, through the hub {other[at : at + 200]!r}")
    return "\n  ".join(told)
