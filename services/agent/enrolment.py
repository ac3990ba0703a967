"""Enrolment: from a join token, or from an earlier certificate, to a certificate of this cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from kubegems.fleet.v1 import enrolment_service_pb2 as wire
from libs import log
from libs.crypt import ca
from services.agent.enrolment_roads import Listener, Road
from services.agent.identity import Addresses, Identity, IdentityFiles, token_hash

_log = log.get(__name__)
Saved = Callable[[], Awaitable[None]]


class Enrolment:
    """The agent's side of the EnrolmentService.

    Args:
        address: `host:port` of the enrolment listener.
        pin: SHA-256 (hex) of the hub's CA.
        files: where key and certificate are kept.
        version: the agent's version.
        road: another way to the hub than its listener.
        saved: called whenever the files changed, and before the hub hears of a new key.
    """

    def __init__(
        self, address: str, pin: str, files: IdentityFiles, *, version: str, road: Road | None = None, saved: Saved | None = None
    ) -> None:
        self._pin = pin
        self._road = road or Listener(address, pin)
        self._files = files
        self._version = version
        self._saved = saved or _nothing

    def belongs(self, identity: Identity) -> bool:
        """Whether an identity is of the hub whose CA is pinned: it joined under that CA, or was told of it since."""
        trusted = {identity.addresses.pin, *map(ca.fingerprint, ca.certificates(identity.ca_file.read_text()))}
        return self._pin.lower() in trusted

    async def join(self, token_file: Path) -> Identity:
        """Trades the token for a certificate. The token leaves only over TLS that the pinned CA vouches for.

        The key is on disk before its request is sent, so a join that was cut off is taken up with the same key, for
        which the token stays good.
        """
        request = ca.request(await self._next_key(), "agent")
        token = read_token(token_file)
        message = wire.EnrolRequest(token=token, certificate_request=request, agent_version=self._version)
        pinned = await self._road.pinned()
        reply = await self._road.enrol(message, pinned)
        addresses = Addresses(
            reply.cluster_uid, reply.cluster, reply.tunnel_address, reply.nats_address, token_hash(token), self._pin.lower()
        )  # fmt: skip
        _log.info("agent.joined", cluster=reply.cluster, cluster_uid=reply.cluster_uid)
        return await self._keep(reply.certificate, reply.ca or pinned, addresses)

    async def renew(self, identity: Identity) -> Identity:
        """A new certificate with a fresh key, on proof that we hold the earlier one's key; that one may have expired.

        The hub is known by the CAs that it told of last, and tells of them anew: so trust moves from one CA to the next.
        """
        request = ca.request(await self._next_key(), "agent")
        proof = ca.prove(identity.key, request.encode())
        trusted = identity.ca_file.read_text()
        message = wire.RenewRequest(certificate=identity.certificate, certificate_request=request, proof=proof)
        reply = await self._road.renew(message, trusted)
        old = identity.addresses
        addresses = replace(
            old, tunnel_address=reply.tunnel_address or old.tunnel_address, nats_address=reply.nats_address or old.nats_address,
            pin=self._pin.lower(),
        )  # fmt: skip
        return await self._keep(reply.certificate, reply.ca or trusted, addresses)

    async def _next_key(self) -> str:
        key = self._files.next_key()
        await self._saved()
        return key

    async def _keep(self, certificate: str, ca_pem: str, addresses: Addresses) -> Identity:
        kept = self._files.keep(certificate=certificate, ca_pem=ca_pem, addresses=addresses)
        await self._saved()
        return kept


async def _nothing() -> None:
    """Files are enough."""


def read_token(file: Path) -> str:
    """The token in a file; ValueError when it holds none."""
    token = file.read_text().strip()
    if "." not in token:
        raise ValueError(f"{file} holds no join token of the form id.secret")
    return token
