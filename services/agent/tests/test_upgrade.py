"""The connection that an upgraded stream has to its API server, on the event loop that the agent runs on."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from yarl import URL

from deploy.local.certificates import Certificates
from services.agent import upgrade

SIZE = 1_000_000


def _sends_and_hangs_up(listening: socket.socket, tls: ssl.SSLContext | None) -> None:
    """One connection: all at once, and no goodbye but TCP's."""
    connection, _ = listening.accept()
    if tls is not None:
        connection = tls.wrap_socket(connection, server_side=True)
    connection.sendall(b"x" * SIZE)
    connection.close()


async def _read(connection: Any, port: int) -> int:
    reader, writer = await upgrade._dialled(URL(f"https://127.0.0.1:{port}"), connection)
    size = 0
    while chunk := await reader.read(32 * 1024):
        size += len(chunk)
        await asyncio.sleep(0.002)  # the tunnel takes it more slowly than it comes
    await upgrade._close(writer)
    return size


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("encrypted", [True, False], ids=["TLS", "plain"])
async def test_what_was_sent_before_the_end_is_read_to_its_end(hub_certificates: Certificates, run: Any, encrypted: bool) -> None:
    """An API server that hangs up at once after exec's last output, to an agent that is still reading: nothing is lost."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(hub_certificates.ca))
    server.load_cert_chain(hub_certificates.certificate("gateway"), hub_certificates.key("gateway"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_sends_and_hangs_up, args=(listening, server if encrypted else None))
        thread.start()
        connection = SimpleNamespace(tls=client if encrypted else None, server_hostname="gateway.hub.kubegems.internal")
        assert await asyncio.to_thread(run, _read(connection, listening.getsockname()[1])) == SIZE
        thread.join()
