"""The hub's parts: PostgreSQL, NATS, gateway, msgbus, worker; and what each is told."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from deploy.local import health, services
from deploy.local.certificates import Certificates
from deploy.local.errors import LocalError
from deploy.local.layout import Layout
from deploy.local.nats import Nats, check_closed
from deploy.local.options import Options
from deploy.local.part import Part
from deploy.local.ports import Ports, Scoped, Taking
from deploy.local.postgres import Postgres, socket_folder
from libs.crypt import ca

VIEWER = services.ROOT / ".cache/viewer/node_modules/swagger-ui-dist"


class HubParts:
    """Makes the hub's parts for one stack.

    Args:
        layout: its folders.
        options: an existing PostgreSQL or NATS may stand in.
        ports: gives each listener its port.
    """

    def __init__(self, layout: Layout, options: Options, ports: Ports) -> None:
        self.layout = layout
        self.certificates = Certificates(layout.certificates)
        self._options = options
        self._port = ports.take
        further = {name: Scoped(ports, name) for name in (f"gateway-{number}" for number in range(2, options.gateways + 1))}
        self._gateways: dict[str, Taking] = {"gateway": ports, **further}
        self._postgres: Postgres | None = None
        self._nats: Nats | None = None
        self.new_password = False

    @property
    def rest(self) -> str:
        """The gateway's REST address."""
        return f"https://127.0.0.1:{self._port('rest')}"

    @property
    def grpc(self) -> str:
        """The gateway's gRPC address."""
        return f"127.0.0.1:{self._port('grpc')}"

    @property
    def tunnels(self) -> str:
        """Every gateway's tunnel address."""
        return self._all("tunnel")

    @property
    def nats_url(self) -> str:
        """Where NATS serves."""
        return self._options.nats_url or f"tls://127.0.0.1:{self._port('nats')}"

    @property
    def database_url_file(self) -> Path:
        """Holds how to connect to PostgreSQL."""
        return self.layout.secrets / "database.url"

    async def prepare(self) -> None:
        """Renews certificates, makes the admin's password, finds PostgreSQL and NATS."""
        self.certificates.renew()
        if not self.layout.admin_password.exists():
            ca.write_private(self.layout.admin_password, secrets.token_urlsafe(15) + "\n")
            self.new_password = True
        layout = self.layout
        if self._options.database_url:
            await _answers(self._options.database_url)
            ca.write_private(self.database_url_file, self._options.database_url + "\n")
        else:
            self._forget_sockets()
            sockets = socket_folder()
            (layout.root / "sockets").write_text(str(sockets))
            self._postgres = Postgres(
                layout.postgres_data,
                layout.logs / "postgresql.log",
                layout.secrets / "postgres.password",
                sockets,
                durable=self._options.durable,
            )
        if self._options.nats_url:
            await check_closed(self._options.nats_url, self.certificates)
        else:
            self._nats = Nats(
                layout.root / "nats", layout.logs / "nats.log", self.certificates, layout.secrets / "nats", self._port("nats")
            )

    def stores(self) -> list[Part]:
        """PostgreSQL and NATS, where they are ours."""
        parts = []
        if self._postgres:
            postgres = self._postgres

            async def prepare() -> None:
                await postgres.prepare()
                ca.write_private(self.database_url_file, postgres.dsn + "\n")

            parts.append(Part("postgresql", postgres.command, postgres.ready, prepare))
        if self._nats:
            parts.append(self._nats.part())
        return parts

    def gateways(self, env: Mapping[str, str]) -> list[Part]:
        """The gateways: `gateway`, and `gateway-2` and so on when more are wanted."""
        return [self._gateway(name, ports, env) for name, ports in self._gateways.items()]

    def _gateway(self, name: str, ports: Taking, env: Mapping[str, str]) -> Part:
        rest = f"https://127.0.0.1:{ports.take('rest')}"
        part = services.part(
            "gateway",
            self._facts("gateway") | self._gateway_facts(ports),
            self.layout.logs / f"{name}.log",
            lambda: health.until_answers(f"{rest}/readyz", self.certificates.ca),
            env,
        )
        return dataclasses.replace(part, name=name)

    def _all(self, listener: str) -> str:
        """The addresses of a listener of every gateway."""
        return ",".join(f"127.0.0.1:{ports.take(listener)}" for ports in self._gateways.values())

    def inner(self, name: str, env: Mapping[str, str]) -> Part:
        """Msgbus or the worker."""
        port = self._port(name)
        return services.part(
            name,
            self._facts(name),
            self.layout.logs / f"{name}.log",
            lambda: health.until_serving(port, name, self.certificates),
            env,
        )

    def close(self) -> None:
        """Takes the socket folder away."""
        self._forget_sockets()

    def _forget_sockets(self) -> None:
        """Removes the socket folder of this start, or of one that was killed."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree((self.layout.root / "sockets").read_text(), ignore_errors=True)
            (self.layout.root / "sockets").unlink()

    def _facts(self, name: str) -> dict[str, object]:
        """What each hub service may be told, by the names that their settings use."""
        certificates, port = self.certificates, self._port
        master = certificates.master_key
        return {
            "database_url_file": self.database_url_file,
            "nats_url": self.nats_url,
            "nats_seed_file": self.layout.secrets / "nats" / f"{name}.nk",
            "certificate_file": certificates.certificate(name),
            "key_file": certificates.key(name),
            "ca_file": certificates.ca,
            "master_key_file": master,
            "page_key_file": master,
            "resume_key_file": master,
            "gateway_address": self._all("internal"),
            "grpc_address": f"127.0.0.1:{port(name if name != 'gateway' else 'grpc')}",
            "metrics_address": f"127.0.0.1:{port(f'{name}-metrics')}",
        }

    def _gateway_facts(self, ports: Taking) -> dict[str, object]:
        port = ports.take
        viewer = {"viewer_folder": VIEWER} if VIEWER.is_dir() else {}
        return viewer | {
            "rest_address": f"127.0.0.1:{port('rest')}",
            "internal_address": f"127.0.0.1:{port('internal')}",
            "enrolment_address": f"127.0.0.1:{port('enrolment')}",
            "tunnel_address": f"127.0.0.1:{port('tunnel')}",
            "grpc_address": f"127.0.0.1:{port('grpc')}",
            "metrics_address": f"127.0.0.1:{port('gateway-metrics')}",
            "public_tunnel_address": self.tunnels,
            "public_enrolment_address": f"127.0.0.1:{self._port('enrolment')}",
            "msgbus_address": f"127.0.0.1:{self._port('msgbus')}",
            "worker_address": f"127.0.0.1:{self._port('worker')}",
            "ca_key_file": self.certificates.key("ca"),
            "admin_password_file": self.layout.admin_password,
            "public_url": self.rest,
        }


async def _answers(url: str) -> None:
    """Checks an existing PostgreSQL."""
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise LocalError(f"KUBEGEMS_DATABASE_URL: PostgreSQL does not answer: {type(error).__name__}") from None
    await connection.close()
