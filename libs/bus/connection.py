"""One connection to NATS through every outage. A lost client is thrown away and a new one made: no state survives but ours."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from libs import log
from libs.faults import Unavailable

_log = log.get("libs.bus")
_CONNECT = 5  # seconds
_BACKOFF = (0.05, 3.0)
_PING = 10
_CLOSE = 2.0
_CANCEL = 0.5  # seconds until a cancel that showed no effect is sent again

_ANSWERS = (  # the broker is there and says no, or would
    nats.js.errors.APIError,
    nats.js.errors.NoStreamResponseError,
    nats.errors.BadSubjectError,
    nats.errors.MaxPayloadError,
)

Tls = tuple[Path, Path, Path]


@dataclass(frozen=True, slots=True)
class Address:
    """Where and as whom to connect.

    Attributes:
        url: `tls://host:port`.
        name: what the broker shows.
        tls: (certificate, key, CA) files, read afresh at each connect, so that renewed ones are used.
        nkey_seed_file: the service's seed; agents have none, their certificate decides.
        inbox_prefix: where answers go; an agent's own.
        server_name: what the broker's certificate must name; empty: the host of the URL.
    """

    url: str
    name: str
    tls: Tls | None = None
    nkey_seed_file: Path | None = None
    inbox_prefix: str = "_INBOX"
    server_name: str = ""

    def options(self) -> dict[str, Any]:
        """The client's options."""
        found: dict[str, Any] = {
            "servers": self.url,
            "name": self.name,
            "inbox_prefix": self.inbox_prefix,
            "connect_timeout": _CONNECT,
            "ping_interval": _PING,
            "allow_reconnect": False,
            "pending_size": 0,  # nothing is buffered while disconnected
        }
        if self.tls:
            found["tls"] = client_context(*self.tls)
        if self.server_name:
            found["tls_hostname"] = self.server_name
        if self.nkey_seed_file:
            found["nkeys_seed"] = str(self.nkey_seed_file)
        return found


def client_context(certificate: Path | None, key: Path | None, ca: Path) -> ssl.SSLContext:
    """TLS as a client: TLS 1.3, the hub's CA alone, our certificate if any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(ca)
    if certificate and key:
        context.load_cert_chain(certificate, key)
    return context


class Connection:
    """Keeps a client connected."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._closing = False
        self._waiting: set[asyncio.Timeout] = set()
        self._task = asyncio.create_task(self._run(), name=f"bus connection {address.name}")

    @property
    def connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._up.is_set()

    async def client(self, seconds: float | None) -> Client:
        """The connected client; waits for it, and raises Unavailable when it does not come in time."""
        try:
            async with asyncio.timeout(seconds):
                while self._client is None or not self._client.is_connected:
                    self._lose(self._lost)
                    await self._up.wait()
        except TimeoutError as error:
            raise away() from error
        return self._client

    @contextlib.asynccontextmanager
    async def deadline(self, seconds: float) -> AsyncIterator[None]:
        """Ends a wait for the broker after some seconds, or as soon as the connection is lost: the answer cannot come any more."""
        try:
            async with asyncio.timeout(seconds) as clock:
                self._waiting.add(clock)
                try:
                    yield
                finally:
                    self._waiting.discard(clock)
        except (TimeoutError, nats.errors.Error, ConnectionError) as error:
            if isinstance(error, _ANSWERS):
                raise
            raise away() from error

    async def lost(self, client: Client) -> None:
        """Returns when this client is no longer the connected one."""
        if self._client is client:
            await self._lost.wait()

    async def close(self) -> None:
        """Sends what is under way and disconnects."""
        self._closing = True
        client = self._client
        if client is not None and client.is_connected:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE):
                    await flushed(client)
        while not self._task.done():  # nats-py swallows a cancel that comes while it connects or closes
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CANCEL)

    async def _run(self) -> None:
        delay = _BACKOFF[0]
        while True:
            client = Client()
            lost = asyncio.Event()
            try:
                await self._connect(client, lost)
                delay = _BACKOFF[0]
                await lost.wait()
                _log.warning("bus.disconnected", connection=self._address.name, error=repr(client.last_error))
            except Exception as error:  # noqa: BLE001 -- whatever keeps us from the broker, we try again
                _log.warning("bus.away", connection=self._address.name, error=repr(error))
            finally:
                self._client = None
                self._lose(lost)
                await _closed(client)
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter
            delay = min(delay * 2, _BACKOFF[1])

    async def _connect(self, client: Client, lost: asyncio.Event) -> None:
        async def gone() -> None:
            self._lose(lost)

        async with asyncio.timeout(_CONNECT * 2):
            await client.connect(**self._address.options(), error_cb=self._error, closed_cb=gone, disconnected_cb=gone)
        self._client, self._lost = client, lost
        self._up.set()
        _log.info("bus.connected", connection=self._address.name)

    def _lose(self, lost: asyncio.Event) -> None:
        lost.set()
        if lost is self._lost:
            self._up.clear()
            now = asyncio.get_running_loop().time()
            for clock in self._waiting:
                if not clock.expired():
                    clock.reschedule(now)
            self._waiting.clear()

    async def _error(self, error: Exception) -> None:
        if not self._closing:
            _log.warning("bus.error", connection=self._address.name, error=str(error))


def away() -> Unavailable:
    """The broker cannot be reached, or does not answer."""
    return Unavailable("the message broker is away; try again", {"broker": "away"}, retry_after=timedelta(seconds=1))


async def _closed(client: Client) -> None:
    with contextlib.suppress(Exception, asyncio.CancelledError):
        async with asyncio.timeout(_CLOSE):
            await client.close()


async def flushed(client: Client) -> None:
    """Returns when the broker has taken all that was sent before. The client's own `flush` lets its PING overtake what it still holds."""
    await client._flush_pending(force_flush=True)  # noqa: SLF001 -- there is no other way to await its buffer
    await client.flush()


async def connect_once(address: Address, **options: Any) -> Client:
    """A client that is not kept; for checks."""
    return await nats.connect(**address.options(), **options)
