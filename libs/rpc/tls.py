"""Certificates of a process, for gRPC in C and for Python's ssl; renewed files are picked up by new connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from libs import log

_LOOK_SECONDS = 30.0
_log = log.get("libs.rpc")


@dataclass(frozen=True, slots=True)
class Tls:
    """Where a certificate (with its chain), its key and the CA's certificate lie."""

    certificate_file: Path
    key_file: Path
    ca_file: Path

    def server(self, *, require_client: bool) -> grpc.ServerCredentials:
        """Credentials of a gRPC listener; with `require_client` only certificates of the CA come in."""
        seen = [self._stamp()]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            stamp = self._stamp()
            if stamp == seen[0]:
                return None
            seen[0] = stamp
            return self._configuration()

        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", renewed)  # None, which the stubs forget, means no change
        return grpc.dynamic_ssl_server_credentials(self._configuration(), fetch, require_client_authentication=require_client)

    def channel(self) -> grpc.ChannelCredentials:
        """Credentials of a client that shows its certificate."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca_file.read_bytes(),
            private_key=self.key_file.read_bytes(),
            certificate_chain=self.certificate_file.read_bytes(),
        )

    def context(self) -> ssl.SSLContext:
        """An HTTP/1.1 server's context, TLS 1.2 and later, without client certificates."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    async def keep_fresh(self, *contexts: ssl.SSLContext) -> None:
        """Loads renewed files into contexts of servers, within a minute, until cancelled."""
        seen = self._stamp()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                stamp = self._stamp()
                if stamp != seen:
                    for context in contexts:
                        context.load_cert_chain(self.certificate_file, self.key_file)
                    seen = stamp
            except (OSError, ssl.SSLError) as error:  # half written; the next look finds it whole
                _log.warning("tls.not_renewed", error=repr(error))

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        # the chain ends with the CA itself: an agent that joins knows only that certificate's hash (decisions.md 14)
        pair = (self.key_file.read_bytes(), self.certificate_file.read_bytes() + b"\n" + self.ca_file.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=self.ca_file.read_bytes())

    def _stamp(self) -> tuple[int, ...]:
        return tuple(file.stat().st_mtime_ns for file in (self.certificate_file, self.key_file, self.ca_file))
