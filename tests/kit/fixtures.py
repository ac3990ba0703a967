"""The fixtures; registered for all tests by the root's conftest.py."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.collector import Jaeger
from deploy.local.ports import Ports
from libs.crypt import ca
from tests.kit import cluster as clusters
from tests.kit import platform as platforms
from tests.kit.cluster import Cluster
from tests.kit.data import DatabaseServer, FreshDatabase, postgres_server
from tests.kit.eventually import eventually as _eventually
from tests.kit.nats import NatsServer, nats_server_part
from tests.kit.platform import Platform


@pytest.fixture(scope="session")
def kit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run's servers keep their files; only its owner can read it."""
    folder = tmp_path_factory.mktemp("kit")
    folder.chmod(0o700)
    return folder


@pytest.fixture(scope="session")
def free_ports() -> Ports:
    """Gives out ports that are free."""
    return Ports(documented=False)


@pytest.fixture(scope="session")
def hub_certificates(kit_folder: Path) -> Certificates:
    """The hub CA, the services' certificates, the master key, as files."""
    certificates = Certificates(kit_folder / "certificates")
    certificates.renew()
    return certificates


@pytest.fixture(scope="session")
def hub_ca(hub_certificates: Certificates) -> ca.Authority:
    """The hub's certificate authority; signs whatever a test needs."""
    return hub_certificates.authority


@pytest.fixture(scope="session")
async def postgres(kit_folder: Path) -> AsyncIterator[DatabaseServer]:
    """A PostgreSQL for the whole run; `.dsn` is its database `kubegems`, better take `database`."""
    async with postgres_server(kit_folder) as server:
        yield server


@pytest.fixture(scope="module")
async def database(postgres: DatabaseServer, request: pytest.FixtureRequest) -> AsyncIterator[FreshDatabase]:
    """An empty database for one test module: `.dsn`, `.name`."""
    stem = re.sub(r"\W", "_", Path(request.node.nodeid).stem)[:40]
    async with postgres.fresh(f"{stem}_{secrets.token_hex(4)}") as fresh:
        yield fresh


@pytest.fixture
async def connection(database: FreshDatabase) -> AsyncIterator[Any]:
    """A plain asyncpg connection to the module's database, to look behind the code under test."""
    found = await asyncpg.connect(database.dsn)
    yield found
    await found.close()


@pytest.fixture(scope="session")
async def nats_server(kit_folder: Path, hub_certificates: Certificates, free_ports: Ports) -> AsyncIterator[NatsServer]:
    """A NATS with JetStream for the whole run, configured as in the local stack."""
    server = NatsServer.create(kit_folder, hub_certificates, free_ports.take("nats"))
    async with parts.running(nats_server_part(server)) as process:
        server.process = process
        yield server


@pytest.fixture(scope="session")
async def cluster(kit_folder: Path, free_ports: Ports) -> AsyncIterator[Cluster]:
    """A control plane with two simulated nodes for the whole run; CRDs and the join manifest are applied."""
    async with clusters.cluster(kit_folder, free_ports) as found:
        yield found


@pytest.fixture(scope="session")
async def jaeger(kit_folder: Path, free_ports: Ports) -> AsyncIterator[Jaeger]:
    """A Jaeger for the whole run: `.otlp` takes spans, `.url` answers `/api/traces/{id}`."""
    async with platforms.collector(kit_folder, free_ports) as found:
        yield found


@pytest.fixture(scope="session")
async def stack(kit_folder: Path) -> AsyncIterator[Platform]:
    """The whole platform with a Jaeger, joined, for all e2e tests of the run."""
    async with platforms.platform(kit_folder / "stack") as found:
        yield found


@pytest.fixture(scope="session")
def eventually() -> Any:
    """The function that waits with a deadline, `eventually.eventually`."""
    return _eventually
