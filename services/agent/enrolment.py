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
        """Whether an identity is of the hub whose CA is pinned."""
        return fingerprint(identity.ca_file.read_text()) == self._pin.lower()

    async def join(self, token_file: Path) -> Identity:
        """Trades the token for a certificate. The token leaves only over TLS that the pinned CA vouches for.

        The key is on disk before its request is sent, so a join that was cut off is taken up with the same key, for
        which the token stays good.
        """
        request = ca.request(self._files.next_key(), "agent")
        token = read_token(token_file)
        message = wire.EnrolRequest(token=token, certificate_request=request, agent_version=self._version)
        async with self._hub() as (stub, ca_pem):
            reply = await stub.Enrol(message, timeout=_SECONDS)
        addresses = Addresses(reply.cluster_uid, reply.cluster, reply.tunnel_address, reply.nats_address, token_hash(token))
        _log.info("agent.joined", cluster=reply.cluster, cluster_uid=reply.cluster_uid)
        return self._files.keep(certificate=reply.certificate, ca_pem=ca_pem, addresses=addresses)

    async def renew(self, identity: Identity) -> Identity:
        """A new certificate with a fresh key, on proof that we hold the earlier one's key; that one may have expired."""
        request = ca.request(self._files.next_key(), "agent")
        proof = ca.prove(identity.key, request.encode())
        async with self._hub() as (stub, ca_pem):
            message = wire.RenewRequest(certificate=identity.certificate, certificate_request=request, proof=proof)
            reply = await stub.Renew(message, timeout=_SECONDS)
        old = identity.addresses
        addresses = replace(
            old, tunnel_address=reply.tunnel_address or old.tunnel_address, nats_address=reply.nats_address or old.nats_address
        )
        return self._files.keep(certificate=reply.certificate, ca_pem=ca_pem, addresses=addresses)

    @asynccontextmanager
    async def _hub(self) -> AsyncIterator[tuple[EnrolmentServiceStub, str]]:
        """A stub whose server the pinned CA has certified as the gateway, and that CA; gRPC's errors come out as Faults."""
        ca_pem = await fetch_ca(self._address, self._pin)
        if fingerprint(ca_pem) != self._pin.lower():
            raise PinMismatch("the CA is not the pinned one")
        credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem.encode())
        options = [("grpc.ssl_target_name_override", _HUB), ("grpc.enable_retries", 0)]
        async with grpc.aio.secure_channel(self._address, credentials, options=options) as channel:
            try:
                yield EnrolmentServiceStub(channel), ca_pem
            except grpc.aio.AioRpcError as error:
                raise status.from_rpc_error(error, "gateway")[0] from error


def read_token(file: Path) -> str:
    """The token in a file; ValueError when it holds none."""
    token = file.read_text().strip()
    if "." not in token:
        raise ValueError(f"{file} holds no join token of the form id.secret")
    return token
