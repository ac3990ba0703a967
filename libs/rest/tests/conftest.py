"""A certificate for the tests of this folder."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest

from libs.crypt.ca import Authority
from libs.rest.tests.library import HubTls
from libs.rpc import Tls


@pytest.fixture(scope="session")
def hub_tls(tmp_path_factory: pytest.TempPathFactory) -> HubTls:
    """Contexts of a server named localhost and of a client that believes it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.create("test", now=datetime.now(UTC))[0]
    (folder / "ca.crt").write_text(authority.certificate)
    authority.issue("hub", now=datetime.now(UTC), lifetime=timedelta(days=1), dns=("localhost",), ips=()).write(folder, "hub")
    server = Tls(folder / "hub.crt", folder / "hub.key", folder / "ca.crt").context()
    return HubTls(server, ssl.create_default_context(cafile=str(folder / "ca.crt")))
