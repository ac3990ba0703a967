"""Connection: where the API server is and how to prove who we are, from a kubeconfig or from inside a pod."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import ConfigException, kube_config, load_incluster_config, load_kube_config

_RELOAD_AFTER = 5.0  # seconds between two reloads, however often the server says 401

Load = Callable[[], Awaitable[Configuration]]


class Connection:
    """An API server's address, TLS and credentials.

    Attributes:
        server: URL without a trailing slash.
        tls: context that checks the server and may hold a client certificate; None for plain HTTP.
        server_hostname: name to check the server's certificate for, when not the URL's.
    """

    def __init__(self, load: Load, configuration: Configuration) -> None:
        self._load = load
        self._loaded = time.monotonic()
        self._take(configuration)

    @classmethod
    async def from_kubeconfig(cls, path: Path, *, context: str | None = None) -> Connection:
        """The one a kubeconfig names; ValueError when it is not usable."""

        async def load() -> Configuration:
            configuration = Configuration()
            await load_kube_config(str(path), context=context, client_configuration=configuration, persist_config=False)
            return configuration

        return await cls._first(load, str(path))

    @classmethod
    async def in_cluster(cls) -> Connection:
        """The one that a pod's service account has; ValueError outside a pod."""

        async def load() -> Configuration:
            configuration = Configuration()
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call] # the library's
            return configuration

        return await cls._first(load, "service account")

    @classmethod
    async def _first(cls, load: Load, source: str) -> Connection:
        try:
            return cls(load, await load())
        except (ConfigException, OSError, KeyError, AssertionError) as error:
            raise ValueError(f"{source}: {error}") from error

    async def authorization(self) -> str:
        """The Authorization header's value, fresh; empty when the client certificate is all."""
        return str(await self._configuration.get_api_key_with_prefix("BearerToken") or "")

    async def reload(self) -> bool:
        """Reads file or plugin again after a 401; whether the credentials differ now."""
        if time.monotonic() - self._loaded < _RELOAD_AFTER:
            return False
        self._loaded = time.monotonic()
        before = await self.authorization()
        try:
            self._take(await self._load())
        except (ConfigException, OSError, KeyError, AssertionError):
            return False  # half-written file or failing plugin: the old credentials stay, the 401 is told
        return await self.authorization() != before

    def _take(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self.server = str(configuration.host).rstrip("/")
        self.tls = _tls(configuration) if self.server.startswith("https") else None
        self.server_hostname: str | None = configuration.tls_server_name or None
        kube_config._cleanup_temp_files()  # noqa: SLF001 -- the library would leave client keys in /tmp until exit


def _tls(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
