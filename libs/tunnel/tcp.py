"""The default carrier: one mutually authenticated TLS connection over TCP."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from cryptography import x509

from libs.tunnel.limits import KIB, Limits
from libs.tunnel.mux import Accept, Mux
from libs.tunnel.pings import wall_millis

ALPN = "kubegems-tunnel/1"
HANDSHAKE_SECONDS = 10.0
_UNSENT = 128 * KIB  # queued in the kernel below the scheduler, where a small call cannot overtake
_MARK = 64 * KIB
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # Linux's number; the constant came with Python 3.12
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)
_USER_TIMEOUT_MILLIS = 15_000


class Connection(asyncio.BufferedProtocol):
    """One end of a connection, with its multiplexer once it stands.

    Attributes:
        mux: the multiplexer; set before `on_made` is called.
    """

    mux: Mux

    def __init__(
        self, *, odd: bool, accept: Callable[[Connection], Accept], on_made: Callable[[Connection], None] | None = None,
        limits: Limits | None = None, name: str = "tunnel", now_millis: Callable[[], int] = wall_millis,
    ) -> None:  # fmt: skip
        self._make: Callable[[], Mux] = lambda: Mux(self, odd=odd, accept=accept(self), limits=limits, name=name, now_millis=now_millis)
        self._on_made = on_made
        self._transport: asyncio.Transport | None = None

    @property
    def peer(self) -> str:
        """The peer's address, without port."""
        address = self._transport.get_extra_info("peername") if self._transport else None
        return str(address[0]) if address else ""

    def certificate(self) -> x509.Certificate | None:
        """What the peer proved itself with."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport else None
        der = tls.getpeercert(binary_form=True) if tls else None
        return x509.load_der_x509_certificate(der) if der else None

    # -- what the multiplexer asks

    def write(self, content: bytes) -> None:
        """Sends bytes."""
        if self._transport is not None:
            self._transport.write(content)

    def abort(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()

    # -- what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TLS handshake is done."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_MARK)
        tune(transport.get_extra_info("socket"))
        self.mux = self._make()
        if self._on_made is not None:
            self._on_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        del sizehint
        return self.mux.framer.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self.mux.received(nbytes)

    def eof_received(self) -> bool:
        """The peer closed; so do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.mux.lost(str(exc) if exc else "the connection was closed")

    def pause_writing(self) -> None:
        """The buffer is full."""
        self.mux.pause()

    def resume_writing(self) -> None:
        """The buffer has room."""
        self.mux.resume()


def tune(sock: socket.socket | None) -> None:
    """Bounds what waits in the kernel, and how long an unanswered send waits."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT)
    sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, _USER_TIMEOUT_MILLIS)


def server_tls(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS 1.3 that demands a client certificate of one CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, certificate, key, ca)


def client_tls(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS 1.3 with our certificate, trusting one CA and checking the server's name."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, key, ca)


def _loaded(context: ssl.SSLContext, certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    return context


async def listen(host: str, port: int, tls: ssl.SSLContext, make: Callable[[], Connection]) -> asyncio.Server:
    """Serves tunnels; `make` gives the protocol of each connection."""
    return await asyncio.get_running_loop().create_server(
        make, host, port, ssl=tls, ssl_handshake_timeout=HANDSHAKE_SECONDS, ssl_shutdown_timeout=1
    )


async def dial(host: str, port: int, tls: ssl.SSLContext, make: Callable[[], Connection], *, server_name: str) -> Connection:
    """Dials; raises OSError, ssl.SSLError or TimeoutError."""
    async with asyncio.timeout(HANDSHAKE_SECONDS * 2):
        _, connection = await asyncio.get_running_loop().create_connection(
            make, host, port, ssl=tls, server_hostname=server_name, ssl_handshake_timeout=HANDSHAKE_SECONDS, ssl_shutdown_timeout=1
        )
    return connection
