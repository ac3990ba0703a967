"""A CA for the tests of this folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from libs.crypt.ca import SPIFFE, Authority
from libs.rpc import Tls


@pytest.fixture(scope="session")
def authority() -> Authority:
    """A CA of the tests' own."""
    return Authority.create("test", now=datetime.now(UTC))[0]


@pytest.fixture(scope="session")
def certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the certificate of a hub service, or of any SPIFFE id."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.crt").write_text(authority.certificate)

    def issue(service: str, uri: str = "") -> Tls:
        dns = (f"{service}.hub.kubegems.internal", "localhost")
        pair = authority.issue(
            service, now=datetime.now(UTC), lifetime=timedelta(days=1), dns=dns, ips=("127.0.0.1",), uri=uri or f"{SPIFFE}/hub/{service}"
        )
        pair.write(folder, service)
        return Tls(folder / f"{service}.crt", folder / f"{service}.key", Path(folder / "ca.crt"))

    return issue
