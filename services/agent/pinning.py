"""The hub's CA, taken from a TLS handshake and believed only when its hash is the pinned one."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from libs.faults import Unavailable

_SECONDS = 10.0


class PinMismatch(Exception):
    """Whoever answers is not the hub of the join command; nothing secret was sent."""


async def fetch_ca(address: str, pin: str) -> str:
    """The CA certificate (PEM) with the pinned SHA-256 from the chain that `host:port` shows.

    Nothing of the chain is trusted here but the certificate whose hash equals the pin; the caller then checks the
    server against it. Raises PinMismatch when it is not in the chain, Unavailable when nobody answers.
    """
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=_unverified())
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"the hub does not answer at {address}") from error
    try:
        chain = _chain(writer.get_extra_info("ssl_object"))
    finally:
        writer.transport.abort()
    for der in chain:
        if hashlib.sha256(der).hexdigest() == pin.lower():
            return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM).decode()
    raise PinMismatch(f"the hub at {address} shows no CA with SHA-256 {pin}; check address and CA hash against the join command")


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the chain is only read; see fetch_ca
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _chain(connection: Any) -> list[bytes]:
    """The chain as sent, DER; `get_unverified_chain` is public since Python 3.13."""
    if hasattr(connection, "get_unverified_chain"):
        return [bytes(der) for der in connection.get_unverified_chain()]
    found = connection._sslobj.get_unverified_chain() or ()  # noqa: SLF001 -- its only name in Python 3.11 and 3.12
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in found]
