"""EnrolmentService: tokens and old certificates in, certificates out."""

from __future__ import annotations

import hashlib
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kubegems.fleet.v1 import enrolment_service_pb2
from libs import pg
from libs.clock import Clock
from libs.crypt import ca
from libs.faults import Invalid
from libs.pg import Record, Tx
from libs.rpc.call import Call
from services.gateway.fleet import certificates_store, domain, health_store, join_tokens_store
from services.gateway.fleet.domain import RenewalRefused, Token
from services.gateway.fleet.joining import Joining

_NOT_OURS = "the certificate is not that of a cluster of this hub"
_NO_REQUEST = "is not a certificate request (PEM) signed with its own ECDSA P-256 key"


class EnrolmentService:
    """Gives agents their certificates.

    Args:
        authority: the hub's CA.
        joining: where the hub is.
        clock: the time.
    """

    def __init__(
        self,
        *,
        authority: ca.Authority,
        joining: Joining,
        clock: Clock,
    ) -> None:
        self._authority = authority
        self._trust = ca.bundle_hash(authority.bundle)
        self._joining = joining
        self._clock = clock

    async def Enrol(self, request: enrolment_service_pb2.EnrolRequest, call: Call) -> enrolment_service_pb2.EnrolResponse:
        """A certificate for a token; Invalid for a bad request, which leaves the token unused; JoinRefused.

        Whoever held the cluster's certificates before is out, and the tokens they came from: joining anew is how a stolen one
        is revoked. A join that is taken up with its key revokes nothing, since the first answer may still arrive.
        """
        key_hash = _key_hash(request.certificate_request)
        token, now = Token.parse(request.token), self._clock.now()
        tx = await pg.tx(call)
        kept = await join_tokens_store.lock(tx, token.id)
        domain.refuse_token(token, kept, key_hash, now)
        assert kept is not None, "refused above"
        if not kept["used"]:
            await certificates_store.revoke(tx, kept["cluster_uid"], now)
            await join_tokens_store.use(tx, token.id, key_hash, now)
        certificate = await self._issue(tx, request.certificate_request, kept["cluster_uid"])
        await tx.execute(
            "UPDATE fleet.clusters SET joined = true, agent_version = $2 WHERE uid = $1", kept["cluster_uid"], request.agent_version
        )
        await health_store.judge(tx, now, [kept["cluster_uid"]])
        call.resources.append(f"clusters/{kept['cluster']}")
        return enrolment_service_pb2.EnrolResponse(
            certificate=certificate, ca=self._authority.bundle, cluster_uid=str(kept["cluster_uid"]), cluster=kept["cluster"],
            tunnel_address=self._joining.tunnel_address, nats_address=self._joining.nats_address,
        )  # fmt: skip

    async def Renew(self, request: enrolment_service_pb2.RenewRequest, call: Call) -> enrolment_service_pb2.RenewResponse:
        """A new certificate for the same cluster uid; Invalid, RenewalRefused."""
        _key_hash(request.certificate_request)
        old = self._ours(request.certificate)
        if not ca.proves(request.certificate, request.certificate_request.encode(), request.proof):
            raise RenewalRefused("the proof was not made with the certificate's key")
        tx = await pg.tx(call)
        await certificates_store.lock(tx, ca.spiffe_id(old).removeprefix(domain.agent_id("")))
        kept = await certificates_store.get(tx, serial(old)) or await self._adopted(tx, old)
        domain.refuse_certificate(kept, ca.spiffe_id(old), self._clock.now())
        assert kept is not None, "refused above"
        certificate = await self._issue(tx, request.certificate_request, kept["cluster_uid"])
        await health_store.judge(tx, self._clock.now(), [kept["cluster_uid"]])
        call.resources.append(f"clusters/{kept['cluster']}")
        return enrolment_service_pb2.RenewResponse(
            certificate=certificate, ca=self._authority.bundle,
            tunnel_address=self._joining.tunnel_address, nats_address=self._joining.nats_address,
        )  # fmt: skip

    async def _adopted(self, tx: Tx, old: x509.Certificate) -> Record | None:
        """A certificate of ours that a restored database has forgotten."""
        uid, issued = ca.spiffe_id(old).removeprefix(domain.agent_id("")), old.not_valid_before_utc + ca.BACKDATE
        await certificates_store.adopt(tx, serial(old), uid, issued, old.not_valid_after_utc)
        return await certificates_store.get(tx, serial(old))

    def _ours(self, pem: str) -> x509.Certificate:
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
        except ValueError as error:
            raise RenewalRefused(_NOT_OURS) from error
        if not ca.issued_by(certificate, self._authority.bundle):
            raise RenewalRefused(_NOT_OURS)
        return certificate

    async def _issue(self, tx: Tx, request_pem: str, cluster_uid: UUID) -> str:
        now, lifetime = self._clock.now(), self._joining.certificate_lifetime
        uri = domain.agent_id(cluster_uid)
        pem = self._authority.sign_request(request_pem, f"cluster {cluster_uid}", now=now, lifetime=lifetime, uri=uri)
        issued = x509.load_pem_x509_certificate(pem.encode())
        await certificates_store.insert(tx, serial(issued), cluster_uid, now, issued.not_valid_after_utc, trust=self._trust)
        return pem


def serial(certificate: x509.Certificate) -> str:
    """A certificate's serial number as it is kept: hex without prefix."""
    return f"{certificate.serial_number:x}"


def _key_hash(request_pem: str) -> bytes:
    """SHA-256 of the public key of a certificate request; Invalid when it is none, or not signed by that key."""
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        key = request.public_key()
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Invalid.one("certificate_request", _NO_REQUEST) from error
    if not (request.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise Invalid.one("certificate_request", _NO_REQUEST)
    return hashlib.sha256(der).digest()
