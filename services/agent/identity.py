"""Identity: the agent's key, certificate and what the hub told it at joining, in the state folder."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import orjson
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from libs.crypt import ca


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who the cluster is to the hub, and where the hub is.

    Attributes:
        cluster_uid, cluster: uid and name of the cluster.
        tunnel_address, nats_address: `host:port`.
        token_hash: of the token that it joined with; another token in the configuration means to join anew.
        pin: hash of the CA that it joined under; the hub may have told of newer ones since.
    """

    cluster_uid: str
    cluster: str
    tunnel_address: str
    nats_address: str
    token_hash: str = ""
    pin: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """A joined agent.

    Attributes:
        certificate_file: certificate with its chain and its key in one PEM file, so that both change at once.
        ca_file: the hub's CA, or several while one takes over from another.
        addresses: who and where.
        not_before, not_after: the certificate's life.
    """

    certificate_file: Path
    ca_file: Path
    addresses: Addresses
    not_before: datetime
    not_after: datetime

    @property
    def key_file(self) -> Path:
        """The key, which lies in the same file as its certificate."""
        return self.certificate_file

    @property
    def certificate(self) -> str:
        """The certificate alone, PEM."""
        found = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        return found.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key(self) -> str:
        """The key alone, PEM."""
        found = serialization.load_pem_private_key(self.certificate_file.read_bytes(), password=None)
        return found.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


class IdentityFiles:
    """The identity's files; each is replaced at once and only its owner can read it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._certificate = folder / "agent.pem"
        self._next_key = folder / "next.key"
        self._ca = folder / "ca.crt"
        self._addresses = folder / "cluster.json"

    def next_key(self) -> str:
        """The key of the next certificate (PEM); saved before anyone hears of it, and the same until `keep`."""
        if not self._next_key.exists():
            ca.write_private(self._next_key, ca.new_key())
        return self._next_key.read_text()

    def keep(self, *, certificate: str, ca_pem: str, addresses: Addresses) -> Identity:
        """Takes the certificate of the next key into use; ValueError when it is for another key."""
        key = self.next_key()
        own = serialization.load_pem_private_key(key.encode(), password=None).public_key()
        if x509.load_pem_x509_certificate(certificate.encode()).public_key() != own:
            raise ValueError("the certificate is for another key")
        ca.write_private(self._ca, ca_pem)
        ca.write_private(self._addresses, orjson.dumps(asdict(addresses)).decode())
        ca.write_private(self._certificate, certificate.rstrip() + "\n" + key)
        self._next_key.unlink()
        found = self.load()
        assert found is not None
        return found

    def load(self) -> Identity | None:
        """The identity; None before joining."""
        if not (self._certificate.exists() and self._addresses.exists() and self._ca.exists()):
            return None
        certificate = x509.load_pem_x509_certificate(self._certificate.read_bytes())
        addresses = Addresses(**orjson.loads(self._addresses.read_bytes()))
        return Identity(self._certificate, self._ca, addresses, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def token_hash(token: str) -> str:
    """What is kept of a join token."""
    return hashlib.sha256(token.encode()).hexdigest()


def fingerprint(certificate_pem: str) -> str:
    """SHA-256 (hex) of a certificate's DER form."""
    return ca.fingerprint(x509.load_pem_x509_certificate(certificate_pem.encode()))
