"""Reads a client's HTTP request under `/k8s`: cluster, canonical request, body within its bounds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from aiohttp import web

from libs.faults import DeadlineExceeded, Invalid, PermissionDenied, Unavailable
from libs.tunnel.kubernetes import Request, Target, request_headers, upgrade_of

PREFIX = "/k8s/clusters/"
_CLUSTER = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_MIB = 1024 * 1024
_LEAST_IDLE_SECONDS = 60.0
_BOUNDS = {"get": 0, "list": 0, "watch": 0, "delete": _MIB, "deletecollection": _MIB, "proxy": 1024 * _MIB}
_WRITE_BOUND = 16 * _MIB


class Split:
    """A raw request target, cut once.

    Attributes:
        cluster: name; empty when it cannot be one.
        path: the cluster's own path, raw.
        query: raw query string.
    """

    def __init__(self, raw: str) -> None:
        target, _, self.query = raw.partition("?")
        self.cluster, self.path = "", "/"
        if target.startswith(PREFIX):
            name, slash, rest = target[len(PREFIX) :].partition("/")
            if slash and _CLUSTER.fullmatch(name):
                self.cluster, self.path = name, "/" + rest


def token_of(request: web.Request) -> str:
    """The bearer token; empty for none. It is taken from nowhere else."""
    given = request.headers.getall("Authorization", [])
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""


def read(request: web.Request, split: Split, origins: frozenset[str], *, user_named: bool = False) -> Request:
    """The request that travels; raises Invalid or PermissionDenied. `user_named` as in `request_headers`."""
    raw = request.raw_headers
    headers = request_headers(raw, user_named=user_named)
    upgrade = upgrade_of(raw)
    origin = request.headers.get("Origin")
    if upgrade and origin is not None and origin not in origins and origin != f"https://{request.headers.get('Host', '')}":
        raise PermissionDenied("the Origin is not this hub's")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Invalid.one("content-encoding", "request bodies are not taken compressed")
    return Request(request.method, split.path, split.query, headers, upgrade)


def body_of(request: web.Request, target: Target, upgrade: str) -> AsyncIterator[bytes] | None:
    """The body within the bound of its verb, or None; raises Invalid when it says at once that it is larger."""
    if upgrade or not request.can_read_body:
        return None
    most = _BOUNDS.get(target.verb, _WRITE_BOUND)
    length = request.content_length
    if not most or (length is not None and length > most):
        raise Invalid(f"the body of {target.verb} may have {most} bytes")
    return _bounded(request, most)


async def _bounded(request: web.Request, most: int) -> AsyncIterator[bytes]:
    size = 0
    while True:
        try:
            async with asyncio.timeout(_LEAST_IDLE_SECONDS):
                chunk = await request.content.readany()
        except TimeoutError as error:
            raise DeadlineExceeded("the request's body came too slowly") from error
        except (web.RequestPayloadError, ConnectionError) as error:
            raise Unavailable("the request's body broke off") from error
        if not chunk:
            return
        size += len(chunk)
        if size > most:
            raise Invalid(f"the body has more than {most} bytes")
        yield chunk
