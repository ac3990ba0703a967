"""The second carrier: a WebSocket, for networks that let only HTTPS through. The agent proves itself by signing a nonce.

TLS may end at an ingress here, so the hub sees no client certificate: the agent shows its certificate and signs the
hub's challenge with its key. Frames travel as binary messages; where one ends means nothing. HTTPS_PROXY is respected.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable
from datetime import datetime

import aiohttp
from aiohttp import web
from cryptography import x509
from google.protobuf.message import DecodeError

from kubegems.agent.v1 import tunnel_pb2
from libs.crypt import ca
from libs.tunnel.limits import KIB, MIB, Limits
from libs.tunnel.mux import Accept, Mux
from libs.tunnel.pings import wall_millis
from libs.tunnel.tcp import tune

PROTOCOL = "kubegems-tunnel.v1"
PATH = "/tunnel"
GREETING_SECONDS = 10.0
MOST_MESSAGE = MIB + 64 * KIB
_MARK = 64 * KIB  # unsent bytes above which the multiplexer waits
_PIECE = 256 * KIB
_PURPOSE = b"kubegems-tunnel-proof/1"
Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Unproved(Exception):
    """The other end did not prove what it must."""


class SocketConnection:
    """One end of a tunnel over a WebSocket that is open and proved.

    Attributes:
        mux: the multiplexer.
        peer: the other end's address.
    """

    def __init__(
        self, socket: Socket, *, odd: bool, accept: Callable[[SocketConnection], Accept], peer: str = "",
        certificate: x509.Certificate | None = None, limits: Limits | None = None, name: str = "tunnel",
        now_millis: Callable[[], int] = wall_millis,
    ) -> None:  # fmt: skip
        self.peer = peer
        self._socket = socket
        self._certificate = certificate
        self._unsent: list[bytes] = []
        self._size = 0
        self._paused = False
        self._some = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tune(socket.get_extra_info("socket"))
        self.mux = Mux(self, odd=odd, accept=accept(self), limits=limits, name=name, now_millis=now_millis)

    def certificate(self) -> x509.Certificate | None:
        """What the peer proved itself with."""
        return self._certificate

    def write(self, content: bytes) -> None:
        """Sends bytes; pauses the multiplexer while too much is unsent."""
        self._unsent.append(content)
        self._size += len(content)
        self._some.set()
        if self._size > _MARK and not self._paused:
            self._paused = True
            self.mux.pause()

    def abort(self) -> None:
        """Drops the connection; `run` returns."""
        if not self._over.done():
            self._over.set_result(None)

    async def run(self) -> None:
        """Carries until one side ends; then the multiplexer is lost."""
        reading = asyncio.create_task(self._read(), name="tunnel socket in")
        writing = asyncio.create_task(self._write(), name="tunnel socket out")
        try:
            await asyncio.wait({reading, writing, self._over}, return_when=asyncio.FIRST_COMPLETED)  # a write may never end by itself
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.wait({reading, writing})
            self.mux.lost("the connection was closed")
            try:
                async with asyncio.timeout(1):
                    await self._socket.close()
            except (OSError, TimeoutError, RuntimeError):
                pass

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                self.mux.abort("the peer sent a message that is not binary")
                return
            self._fed(memoryview(message.data))

    def _fed(self, content: memoryview) -> None:
        while content and self.mux.alive:
            room = self.mux.framer.buffer()
            count = min(len(room), len(content))
            room[:count] = content[:count]
            self.mux.received(count)
            content = content[count:]

    async def _write(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            content, self._unsent, self._size = b"".join(self._unsent), [], 0
            try:
                for start in range(0, len(content), _PIECE):
                    await self._socket.send_bytes(content[start : start + _PIECE])
            except (ConnectionError, RuntimeError):
                return
            if self._paused and self._size <= _MARK:
                self._paused = False
                self.mux.resume()


async def challenge(socket: web.WebSocketResponse, hub_uid: str, authorities: str, now: datetime) -> x509.Certificate:
    """The hub's side: the certificate, of one of these CAs (PEM), of whoever holds its key.

    Raises Unproved. Whether it may come in is not asked here.
    """
    nonce = secrets.token_bytes(32)
    await socket.send_bytes(tunnel_pb2.Challenge(nonce=nonce, hub_uid=hub_uid).SerializeToString())
    try:
        proof = tunnel_pb2.Proof.FromString(await _binary(socket))
        certificate = x509.load_pem_x509_certificate(proof.certificate.encode())
    except (DecodeError, ValueError) as error:
        raise Unproved("no certificate of this hub") from error
    if not ca.issued_by(certificate, authorities):
        raise Unproved("no certificate of this hub")
    if not ca.proves(proof.certificate, _signed(hub_uid, nonce), proof.signature):
        raise Unproved("the challenge was not signed by the certificate's key")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise Unproved("the certificate is not good now")
    return certificate


async def prove(socket: aiohttp.ClientWebSocketResponse, certificate_pem: str, key_pem: str) -> None:
    """The agent's side. Raises Unproved when the hub serves no tunnel there, or asks for nothing that can be signed."""
    if socket.protocol != PROTOCOL:
        raise Unproved("the other end serves no tunnel")
    try:
        asked = tunnel_pb2.Challenge.FromString(await _binary(socket))
    except DecodeError as error:
        raise Unproved("the hub's challenge cannot be read") from error
    if len(asked.nonce) != 32 or not asked.hub_uid:  # noqa: PLR2004 -- bytes, as the protocol says
        raise Unproved("the hub's challenge is not one")
    signature = ca.prove(key_pem, _signed(asked.hub_uid, asked.nonce))
    await socket.send_bytes(tunnel_pb2.Proof(certificate=certificate_pem, signature=signature).SerializeToString())


async def dial(
    url: str, tls: ssl.SSLContext, identity: tuple[str, str], *, server_name: str | None, accept: Callable[[SocketConnection], Accept],
    limits: Limits | None = None, name: str = "tunnel",
) -> tuple[SocketConnection, aiohttp.ClientSession]:  # fmt: skip
    """Connects and proves; the connection's `run` and closing the session are the caller's.

    Args:
        url: `https://host:port` of the hub's edge.
        tls: trusts the edge's certificate.
        identity: certificate and key, PEM.
        server_name: name in the edge's certificate; None: the host of the URL.
        accept: serves the hub's streams.
        limits: of the tunnel.
        name: for logs.

    Raises:
        OSError, TimeoutError, Unproved: there is no tunnel.
    """
    session = aiohttp.ClientSession(trust_env=True, cookie_jar=aiohttp.DummyCookieJar())
    try:
        async with asyncio.timeout(2 * GREETING_SECONDS):
            socket = await session.ws_connect(
                url.rstrip("/") + PATH, protocols=(PROTOCOL,), ssl=tls, server_hostname=server_name, max_msg_size=MOST_MESSAGE,
                compress=0, autoping=True,
            )  # fmt: skip
            await prove(socket, *identity)
    except aiohttp.ClientError as error:
        await session.close()
        raise OSError(f"no WebSocket: {error}") from error
    except BaseException:
        await session.close()
        raise
    return SocketConnection(socket, odd=False, accept=accept, limits=limits, name=name), session


def _signed(hub_uid: str, nonce: bytes) -> bytes:
    return b"\0".join((_PURPOSE, hub_uid.encode(), nonce))


async def _binary(socket: Socket) -> bytes:
    message = await socket.receive(GREETING_SECONDS)
    if message.type is not aiohttp.WSMsgType.BINARY:
        raise Unproved("the other end said nothing")
    return bytes(message.data)
