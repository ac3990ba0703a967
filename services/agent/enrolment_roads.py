"""How the agent reaches the hub's EnrolmentService: at its own gRPC listener, or at the HTTPS edge."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp
import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from kubegems.fleet.v1 import enrolment_service_pb2 as wire
from kubegems.fleet.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from libs.crypt import ca
from libs.faults import Unavailable
from libs.rpc import status
from services.agent.pinning import PinMismatch, fetch_ca

HUB_NAME = "gateway.hub.kubegems.internal"  # what a trusted CA must have certified, whatever address it is reached at
_SECONDS = 20.0
_MOST = 64 * 1024
_OK = 200
_PROTOBUF = "application/x-protobuf"
M = TypeVar("M", bound=Message)


class Road(Protocol):
    """Calls the EnrolmentService of the hub that a CA (PEM, one or more) has certified; raises Unavailable and the hub's Fault."""

    async def pinned(self) -> str:
        """The hub's CA whose hash is the pinned one; PinMismatch when whoever answers shows no such CA."""
        ...

    async def enrol(self, request: wire.EnrolRequest, trusted: str) -> wire.EnrolResponse:
        """Trades a token for a certificate."""
        ...

    async def renew(self, request: wire.RenewRequest, trusted: str) -> wire.RenewResponse:
        """Trades a certificate for a new one."""
        ...


class Away(Unavailable):
    """Nobody answers there."""

    reason = "HUB_AWAY"


class Listener:
    """The enrolment listener.

    Args:
        address: its `host:port`.
        pin: SHA-256 (hex) of the hub's CA.
    """

    def __init__(self, address: str, pin: str) -> None:
        self._address, self._pin = address, pin

    async def pinned(self) -> str:
        """The hub's CA, from its handshake."""
        return _with_hash(await fetch_ca(self._address, self._pin), self._pin, self._address)

    async def enrol(self, request: wire.EnrolRequest, trusted: str) -> wire.EnrolResponse:
        """Trades a token for a certificate."""
        async with self._hub(trusted) as stub:
            return await stub.Enrol(request, timeout=_SECONDS)

    async def renew(self, request: wire.RenewRequest, trusted: str) -> wire.RenewResponse:
        """Trades a certificate for a new one."""
        async with self._hub(trusted) as stub:
            return await stub.Renew(request, timeout=_SECONDS)

    @asynccontextmanager
    async def _hub(self, trusted: str) -> AsyncIterator[EnrolmentServiceStub]:
        """A stub whose server a trusted CA has certified as the gateway; gRPC's errors come out as Faults."""
        credentials = grpc.ssl_channel_credentials(root_certificates=trusted.encode())
        options = [("grpc.ssl_target_name_override", HUB_NAME), ("grpc.enable_retries", 0)]
        async with grpc.aio.secure_channel(self._address, credentials, options=options) as channel:
            try:
                yield EnrolmentServiceStub(channel)
            except grpc.aio.AioRpcError as error:
                raise status.from_rpc_error(error, "gateway")[0] from error


class EdgeRoad:
    """The HTTPS edge, by HTTPS_PROXY where there is one.

    Args:
        urls: `https://host:port` of the edge; several with commas between, of which the first that answers is used.
        pin: SHA-256 (hex) of the hub's CA.
        authority: CA (PEM file) of the edge's certificate, where an ingress ends TLS; None: the hub's own.
    """

    def __init__(self, urls: str, pin: str, authority: Path | None) -> None:
        self._urls, self._pin, self._authority = [url.strip().rstrip("/") for url in urls.split(",")], pin, authority

    async def pinned(self) -> str:
        """The hub's CA, believed for its hash alone: whoever answers is not trusted yet, unless by an authority of our own."""
        tls = _unverified() if self._authority is None else ssl.create_default_context(cafile=str(self._authority))
        shown = await self._asked("GET", "ca", tls)
        return _with_hash(shown.decode(errors="replace"), self._pin, ", ".join(self._urls))

    async def enrol(self, request: wire.EnrolRequest, trusted: str) -> wire.EnrolResponse:
        """Trades a token for a certificate."""
        return await self._called("Enrol", request, wire.EnrolResponse, trusted)

    async def renew(self, request: wire.RenewRequest, trusted: str) -> wire.RenewResponse:
        """Trades a certificate for a new one."""
        return await self._called("Renew", request, wire.RenewResponse, trusted)

    async def _called(self, method: str, request: Message, reply: type[M], trusted: str) -> M:
        own = self._authority is None
        tls = ssl.create_default_context(cadata=trusted) if own else ssl.create_default_context(cafile=str(self._authority))
        body = await self._asked("POST", method, tls, request.SerializeToString(), HUB_NAME if own else None)
        try:
            return reply.FromString(body)
        except DecodeError as error:
            raise Unavailable("the hub's answer cannot be read") from error

    async def _asked(self, method: str, path: str, tls: ssl.SSLContext, body: bytes = b"", name: str | None = None) -> bytes:
        *others, last = self._urls
        for url in others:
            with contextlib.suppress(Away):
                return await _asked(url, method, path, tls, body=body, name=name)
        return await _asked(last, method, path, tls, body=body, name=name)


async def _asked(url: str, method: str, path: str, tls: ssl.SSLContext, *, body: bytes, name: str | None) -> bytes:
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    headers = {"Content-Type": _PROTOBUF} if body else {}
    try:
        async with (
            aiohttp.ClientSession(trust_env=True, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.request(
                method, f"{url}/enrolment/{path}", data=body or None, headers=headers, ssl=tls, server_hostname=name,
                allow_redirects=False,
            ) as answer,
        ):  # fmt: skip
            return await _content(answer, url)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Away(f"the hub does not answer at {url}: {error!r}") from error


async def _content(answer: aiohttp.ClientResponse, url: str) -> bytes:
    found = bytearray()
    async for piece in answer.content.iter_any():
        found += piece
        if len(found) > _MOST:
            raise Unavailable(f"the hub at {url} answers with more than it should")
    if answer.status == _OK:
        return bytes(found)
    if answer.content_type != _PROTOBUF:
        raise Unavailable(f"the hub has no enrolment at {url}: HTTP {answer.status}")
    try:
        raise status.from_status(status_pb2.Status.FromString(bytes(found)))
    except DecodeError as error:
        raise Unavailable(f"the hub's answer at {url} cannot be read") from error


def _with_hash(shown: str, pin: str, where: str) -> str:
    """The certificate with a hash, of those that were shown."""
    try:
        good = [found for found in ca.certificates(shown) if ca.fingerprint(found) == pin.lower()]
    except ValueError:
        good = []
    if not good:
        raise PinMismatch(f"the hub at {where} shows no CA with SHA-256 {pin}; check address and CA hash against the join command")
    return ca.bundle_of(good)


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # what comes is checked by its hash; see EdgeRoad.pinned
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
