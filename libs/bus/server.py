"""The broker's configuration, and the proof that it is closed.

Accounts: HUB holds the streams and everyone's subjects, AUTH the gateway's callout responder alone, SYS its power to
kick. Hub services are listed by nkey; whoever else comes is judged by the callout (by certificate) or gets nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

import nats.errors

from libs.bus import nkey
from libs.bus.connection import Address, Tls, client_context, connect_once, flushed

HUB_SERVICES = ("gateway", "msgbus", "worker")
HUB, AUTH, SYS = "HUB", "AUTH", "SYS"
_PROBE = "gems.platform.probe.closed"
_SECONDS = 5.0
_TEXT = """\
# Made by libs/bus/server.py; do not edit.
server_name: {name}
listen: "{host}:{port}"
max_payload: 1MB
max_connections: 4096
max_subscriptions: 1024
write_deadline: "10s"
ping_interval: "20s"
ping_max: 2

tls {{
  cert_file: "{certificate}"
  key_file: "{key}"
  ca_file: "{ca}"
  verify: true
  min_version: "1.3"
  timeout: 5
}}

jetstream {{
  store_dir: "{store}"
  sync_interval: always
  max_file_store: {max_bytes}
  max_memory_store: 256MB
}}

accounts {{
  {hub} {{
    jetstream: enabled
    users: [
{users}
    ]
  }}
  {auth} {{ users: [ {{ nkey: {callout} }} ] }}
  {sys} {{ users: [ {{ nkey: {system} }} ] }}
}}
system_account: {sys}

authorization {{
  timeout: 5
  auth_callout {{
    issuer: {issuer}
    account: {auth}
    auth_users: [ {auth_users} ]
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Keys:
    """Public keys that the configuration names; their seeds lie in a folder, one file each.

    Attributes:
        folder: `<service>.nk` for each hub service, `callout.nk`, `system.nk` and `issuer.nk` for the gateway alone.
        services: hub service → public key.
        callout: the responder's.
        system: the kicker's.
        issuer: signs what the callout decides.
    """

    folder: Path
    services: dict[str, str]
    callout: str
    system: str
    issuer: str

    @classmethod
    def ensure(cls, folder: Path) -> Keys:
        """The keys of a folder; missing ones are made, files 0600."""
        services = {service: nkey.ensure(folder / f"{service}.nk", nkey.USER) for service in HUB_SERVICES}
        return cls(
            folder, services, nkey.ensure(folder / "callout.nk", nkey.USER), nkey.ensure(folder / "system.nk", nkey.USER),
            nkey.ensure(folder / "issuer.nk", nkey.ACCOUNT),
        )  # fmt: skip

    def seed_file(self, service: str) -> Path:
        """Seed file of a hub service, or of `callout`, `system`, `issuer`."""
        return self.folder / f"{service}.nk"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What a broker needs to know.

    Attributes:
        port: where it listens.
        store: folder of the streams.
        tls: its (certificate, key, CA) files; the CA also judges clients.
        keys: who may connect without the callout.
        host: address to listen on.
        name: the server's name.
        max_bytes: most bytes of all streams.
    """

    port: int
    store: Path
    tls: Tls
    keys: Keys
    host: str = "127.0.0.1"
    name: str = "hub"
    max_bytes: int = 8 * 1024 * 1024 * 1024


def render(config: ServerConfig) -> str:
    """The text of nats.conf (nats-server 2.12 or newer)."""
    certificate, key, ca = config.tls
    services = config.keys.services
    return _TEXT.format(
        name=config.name, host=config.host, port=config.port, certificate=certificate, key=key, ca=ca, store=config.store,
        max_bytes=config.max_bytes, hub=HUB, auth=AUTH, sys=SYS,
        users="\n".join(f"      {{ nkey: {public} }}  # {service}" for service, public in services.items()),
        callout=config.keys.callout, system=config.keys.system, issuer=config.keys.issuer,
        auth_users=", ".join([*services.values(), config.keys.callout, config.keys.system]),
    )  # fmt: skip


class Open(Exception):
    """The broker takes messages from those who must not publish."""


async def prove_closed(url: str, tls: Tls) -> None:
    """Returns when the broker takes nothing from a client without certificate, nor from one with ours but no key.

    Args:
        url: the broker's.
        tls: our (certificate, key, CA) files.

    Raises:
        Open: someone got through.
        OSError: there is no broker.
    """
    certificate, key, ca = tls
    host, port = url.rsplit("//", 1)[-1].rsplit(":", 1)
    _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), _SECONDS)
    writer.close()
    for who, address, context in (
        ("a client without certificate", Address(url, "prove closed"), client_context(None, None, ca)),
        ("a client without key", Address(url, "prove closed"), client_context(certificate, key, ca)),
        ("a client without TLS", Address(url.replace("tls://", "nats://"), "prove closed"), None),
    ):
        if await _publishes(address, {"tls": context} if context else {}):
            raise Open(f"{url}: {who} can publish; the broker must be configured as libs/bus/server.py renders it")


async def _publishes(address: Address, options: dict[str, object]) -> bool:
    errors: list[Exception] = []

    async def failed(error: Exception) -> None:
        errors.append(error)

    try:
        async with asyncio.timeout(_SECONDS):
            client = await connect_once(address, error_cb=failed, **options)
    except (nats.errors.Error, OSError, TimeoutError):
        return False
    try:
        async with asyncio.timeout(_SECONDS):
            await client.publish(_PROBE, b"")
            await flushed(client)
            return not errors and client.is_connected
    except (nats.errors.Error, OSError, TimeoutError):
        return False
    finally:
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(_SECONDS):
                await client.close()
