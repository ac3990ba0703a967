"""A certificate authority for the hub, its services and the agents: ECDSA P-256, PEM in and out."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SPIFFE = "spiffe://kubegems"
BACKDATE = timedelta(minutes=15)  # clocks differ; decisions.md 14


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate (with its chain) and its key, PEM."""

    certificate: str
    key: str

    def write(self, folder: Path, name: str) -> None:
        """Writes `<name>.crt` and `<name>.key` (0600) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.crt").write_text(self.certificate)
        write_private(folder / f"{name}.key", self.key)


class Authority:
    """Signs for one CA.

    Attributes:
        certificate: its certificate, PEM.
        bundle: that of every CA that is trusted; more than one while a new CA takes over from an old one.
    """

    def __init__(self, pair: Pair) -> None:
        self._key = _private(pair.key)
        own = [found for found in certificates(pair.certificate) if found.public_key() == self._key.public_key()]
        if not own:
            raise ValueError("none of the CA's certificates is of the CA's key")
        self._certificate = own[0]
        self.certificate = _pem(own[0])
        self.bundle = pair.certificate

    @classmethod
    def create(cls, common_name: str, *, now: datetime, days: int = 3650) -> tuple[Authority, Pair]:
        """A new self-signed CA, and what to keep of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        pair = Pair(_pem(certificate), private_pem(key))
        return cls(pair), pair

    @classmethod
    def load(cls, certificate_file: Path, key_file: Path) -> Authority:
        """The CA kept in two files; the first may hold other CAs that are trusted too."""
        return cls(Pair(certificate_file.read_text(), key_file.read_text()))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), hex: what a join token pins."""
        return fingerprint(self._certificate)

    def issue(
        self, common_name: str, *, now: datetime, lifetime: timedelta, dns: tuple[str, ...] = (), ips: tuple[str, ...] = (), uri: str = ""
    ) -> Pair:
        """A new key with a certificate good as client and server."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key.public_key(), common_name, now=now, lifetime=lifetime, dns=dns, ips=ips, uri=uri)
        return Pair(certificate, private_pem(key))

    def sign_request(self, request_pem: str, common_name: str, *, now: datetime, lifetime: timedelta, uri: str) -> str:
        """A client certificate for a CSR's key; subject and extensions of the CSR are ignored. ValueError when it is not a P-256 CSR."""
        request = x509.load_pem_x509_csr(request_pem.encode())
        key = request.public_key()
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("must be a request signed with an ECDSA P-256 key")
        return self._sign(key, common_name, now=now, lifetime=lifetime, uri=uri)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        common_name: str,
        *,
        now: datetime,
        lifetime: timedelta,
        dns: tuple[str, ...] = (),
        ips: tuple[str, ...] = (),
        uri: str = "",
    ) -> str:
        names: list[x509.GeneralName] = [x509.DNSName(d) for d in dns] + [x509.IPAddress(ipaddress.ip_address(i)) for i in ips]
        if uri:
            names.append(x509.UniformResourceIdentifier(uri))
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _pem(builder.sign(self._key, hashes.SHA256()))


def certificates(bundle: str) -> list[x509.Certificate]:
    """All certificates of a PEM text; ValueError when there is none."""
    return x509.load_pem_x509_certificates(bundle.encode())


def bundle_of(found: Iterable[x509.Certificate]) -> str:
    """Certificates as one PEM text."""
    return "".join(_pem(each) for each in found)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate (DER), hex."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def bundle_hash(bundle: str) -> str:
    """What names a bundle: hex SHA-256 over its certificates in their order."""
    return hashlib.sha256("".join(fingerprint(each) for each in certificates(bundle)).encode()).hexdigest()


def issued_by(certificate: x509.Certificate, bundle: str) -> bool:
    """Whether a CA of the bundle signed a certificate."""
    for authority in certificates(bundle):
        with contextlib.suppress(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            certificate.verify_directly_issued_by(authority)
            return True
    return False


def new_key() -> str:
    """A fresh P-256 key, PEM."""
    return private_pem(ec.generate_private_key(ec.SECP256R1()))


def request(key_pem: str, common_name: str) -> str:
    """A certificate request (PEM) for a key."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name(common_name))
        .sign(_private(key_pem), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


def prove(key_pem: str, content: bytes) -> bytes:
    """An ECDSA-SHA256 signature (DER) by a key: proof of its possession."""
    return _private(key_pem).sign(content, ec.ECDSA(hashes.SHA256()))


def proves(certificate_pem: str, content: bytes, signature: bytes) -> bool:
    """Whether the key of a certificate made the signature."""
    key = x509.load_pem_x509_certificate(certificate_pem.encode()).public_key()
    try:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except Exception:  # noqa: BLE001 -- whatever the library dislikes about it, it is no proof
        return False
    return True


def spiffe_id(certificate: x509.Certificate) -> str:
    """The URI name of a certificate, such as `spiffe://kubegems/cluster/<uid>`; empty when there is not exactly one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else ""


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """A key as unencrypted PKCS 8 PEM; it goes into 0600 files only."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def write_private(path: Path, content: str) -> None:
    """Writes a file that only its owner can read, replacing an old one at once."""
    write(path, content, mode=0o600)


def write(path: Path, content: str, *, mode: int) -> None:
    """Writes a file, replacing an old one at once: whenever this is cut off, there is the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    temporary.replace(path)


def _private(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("must be an elliptic curve key")
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
