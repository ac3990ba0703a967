"""Enrolment: from a join token, or from an earlier certificate, to a certificate of this cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc

from kubegems.fleet.v1 import enrolment_service_pb2 as wire
from kubegems.fleet.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from libs import log
from libs.crypt import ca
from libs.rpc import status
from services.agent.identity import Addresses, Identity, IdentityFiles, fingerprint, token_hash
from services.agent.pinning import PinMismatch, fetch_ca

_log = log.get(__name__)
_SECONDS = 20.0
_HUB = "gateway.hub.kubegems.internal"  # what the pinned CA must have certified, whatever address it is reached at


class Enrolment:
    """The agent's side of the EnrolmentService.

    Args:
        address: `host:port` of the enrolment listener.
        pin: SHA-256 (hex) of the hub's CA.
        files: where key and certificate are kept.
        version: the agent's version.
    """

    def __init__(self, address: str, pin: str, files: IdentityFiles, *, version: str) -> None:
        self._address = address
        self._pin = pin
        self._files = files
        self._version = version

    def belongs(self, identity: Identity) -> bool:
        """Whether an identity is of the hub whose CA is pinned: it joined under that CA, or was told of it since."""
        trusted = {identity.addresses.pin, *map(ca.fingerprint, ca.certificates(identity.ca_file.read_text()))}
        return self._pin.lower() in trusted

    async def join(self, token_file: Path) -> Identity:
        """Trades the token for a certificate. The token leaves only over TLS that the pinned CA vouches for.

        The key is on disk before its request is sent, so a join that was cut off is taken up with the same key, for
        which the token stays good.
        """
        request = ca.request(self._files.next_key(), "agent")
        token = read_token(token_file)
        message = wire.EnrolRequest(token=token, certificate_request=request, agent_version=self._version)
        pinned = await self._pinned()
        async with self._hub(pinned) as stub:
            reply = await stub.Enrol(message, timeout=_SECONDS)
        addresses = Addresses(
            reply.cluster_uid, reply.cluster, reply.tunnel_address, reply.nats_address, token_hash(token), self._pin.lower()
        )  # fmt: skip
        _log.info("agent.joined", cluster=reply.cluster, cluster_uid=reply.cluster_uid)
        return self._files.keep(certificate=reply.certificate, ca_pem=reply.ca or pinned, addresses=addresses)

    async def renew(self, identity: Identity) -> Identity:
        """A new certificate with a fresh key, on proof that we hold the earlier one's key; that one may have expired.

        The hub is known by the CAs that it told of last, and tells of them anew: so trust moves from one CA to the next.
        """
        request = ca.request(self._files.next_key(), "agent")
        proof = ca.prove(identity.key, request.encode())
        trusted = identity.ca_file.read_text()
        async with self._hub(trusted) as stub:
            message = wire.RenewRequest(certificate=identity.certificate, certificate_request=request, proof=proof)
            reply = await stub.Renew(message, timeout=_SECONDS)
        old = identity.addresses
        addresses = replace(
            old, tunnel_address=reply.tunnel_address or old.tunnel_address, nats_address=reply.nats_address or old.nats_address,
            pin=self._pin.lower(),
        )  # fmt: skip
        return self._files.keep(certificate=reply.certificate, ca_pem=reply.ca or trusted, addresses=addresses)

    async def _pinned(self) -> str:
        ca_pem = await fetch_ca(self._address, self._pin)
        if fingerprint(ca_pem) != self._pin.lower():
            raise PinMismatch("the CA is not the pinned one")
        return ca_pem

    @asynccontextmanager
    async def _hub(self, trusted: str) -> AsyncIterator[EnrolmentServiceStub]:
        """A stub whose server a trusted CA has certified as the gateway; gRPC's errors come out as Faults."""
        credentials = grpc.ssl_channel_credentials(root_certificates=trusted.encode())
        options = [("grpc.ssl_target_name_override", _HUB), ("grpc.enable_retries", 0)]
        async with grpc.aio.secure_channel(self._address, credentials, options=options) as channel:
            try:
                yield EnrolmentServiceStub(channel)
            except grpc.aio.AioRpcError as error:
                raise status.from_rpc_error(error, "gateway")[0] from error


def read_token(file: Path) -> str:
    """The token in a file; ValueError when it holds none."""
    token = file.read_text().strip()
    if "." not in token:
        raise ValueError(f"{file} holds no join token of the form id.secret")
    return token
