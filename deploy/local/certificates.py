"""The hub's certificate authority, its services' certificates and its master key, kept in a folder."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from libs.clock import Clock, SystemClock
from libs.crypt import ca
from libs.crypt.box import Box
from libs.crypt.ca import Authority

SERVICES = ("gateway", "msgbus", "worker")
_LIFETIME = timedelta(days=30)  # renewed at every start


class Certificates:
    """What stands in `<folder>`: `ca.crt`, `ca.key`, `master.key`, and `<name>.crt`, `<name>.key` of each service."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.folder = folder
        self._clock = clock or SystemClock()
        self._authority: Authority | None = None

    @property
    def ca(self) -> Path:
        """The CA's certificate."""
        return self.folder / "ca.crt"

    @property
    def master_key(self) -> Path:
        """The key that seals secrets at rest."""
        return self.folder / "master.key"

    def certificate(self, name: str) -> Path:
        """A service's certificate."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """A service's key."""
        return self.folder / f"{name}.key"

    @property
    def authority(self) -> Authority:
        """The CA, made once."""
        if self._authority is None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self.key("ca").exists():
                _, pair = Authority.create("KubeGems hub CA", now=self._clock.now())
                pair.write(self.folder, "ca")
            self._authority = Authority.load(self.ca, self.key("ca"))
        return self._authority

    def renew(self) -> None:
        """Makes what is missing and gives every service a fresh certificate."""
        self.service_certificates(*SERVICES)
        self.plain("nats", "nats.hub.kubegems.internal")
        if not self.master_key.exists():
            ca.write_private(self.master_key, Box.new_key() + "\n")

    def service_certificates(self, *names: str) -> None:
        """Certificates by which hub services know one another: SPIFFE URI, internal DNS name, loopback."""
        for name in names:
            self._issue(name, f"{name}.hub.kubegems.internal", uri=f"{ca.SPIFFE}/hub/{name}")

    def plain(self, name: str, dns: str) -> None:
        """A certificate for a server that is no service of ours."""
        self._issue(name, dns, uri="")

    def _issue(self, name: str, dns: str, *, uri: str) -> None:
        pair = self.authority.issue(name, now=self._clock.now(), lifetime=_LIFETIME, dns=(dns, "localhost"), ips=("127.0.0.1",), uri=uri)
        pair.write(self.folder, name)
