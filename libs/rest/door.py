"""A listening socket whose connections are counted from their first packet on: who never ends the TLS handshake is somebody too.

asyncio tells a protocol of its peer only when the handshake is done, so the accepting is done here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from libs import log

HANDSHAKE_SECONDS = 10.0
_BREATH_SECONDS = 0.5  # when the process has no file left for one more connection
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = log.get("libs.rest")


class Guest(Protocol):
    """What a connection is to the door: a protocol of asyncio's that was counted when it was made."""

    def forget(self) -> None:
        """It is not counted any more; harmless when said twice."""
        ...


class Door:
    """Listens until closed; has what aiohttp asks of a server.

    Args:
        sockets: bound and listening.
        meet: makes the protocol of a connection from an address, counted; None sends it away without a word.
        tls: of the connections.
        seconds: how long a handshake may take.
    """

    def __init__(
        self, sockets: Sequence[socket.socket], meet: Callable[[str], Guest | None], tls: ssl.SSLContext | None,
        seconds: float = HANDSHAKE_SECONDS,
    ) -> None:  # fmt: skip
        self.sockets = list(sockets)
        self._meet, self._tls, self._seconds = meet, tls, seconds
        self._greeting: set[asyncio.Task[None]] = set()
        self._listening = [asyncio.create_task(self._listen(s), name="door") for s in self.sockets]

    def close(self) -> None:
        """Takes nobody in any more; those whose handshake is under way are sent away."""
        for task in (*self._listening, *self._greeting):
            task.cancel()

    async def wait_closed(self) -> None:
        """Waits until the sockets are closed."""
        await asyncio.gather(*self._listening, *self._greeting, return_exceptions=True)

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    accepted, peer = await loop.sock_accept(listener)
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        _log.error("rest.no_files", errno=error.errno)
                        await asyncio.sleep(_BREATH_SECONDS)
                    continue
                self._take(accepted, str(peer[0]))
        finally:
            listener.close()

    def _take(self, accepted: socket.socket, address: str) -> None:
        guest = self._meet(address)
        if guest is None:
            accepted.close()
            return
        task = asyncio.create_task(self._greet(accepted, guest), name="handshake")
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, accepted: socket.socket, guest: Guest) -> None:
        seconds = self._seconds if self._tls is not None else None
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: guest, accepted, ssl=self._tls, ssl_handshake_timeout=seconds)  # type: ignore[type-var] # it is a protocol of asyncio's too
        except OSError:  # it went, took too long, or spoke no TLS
            guest.forget()
        except BaseException:
            guest.forget()
            raise
