"""The tunnel as a WebSocket on the edge: who may, through a proxy, back-pressure; the rest is test_links on both carriers."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kubegems.agent.v1 import inventory_service_pb2, tunnel_pb2
from libs.crypt.ca import SPIFFE, Authority, Pair, prove
from libs.tunnel import websocket
from libs.tunnel.kubernetes import Request
from tests.integration.link.rig import CLOCK, DEV, GET_INVENTORY, Rig, kubeconfig
from tests.integration.link.upstream import Came, upstream

ASK = inventory_service_pb2.GetInventoryRequest()
NOWHERE = "http://127.0.0.1:9"


async def _knock(rig: Rig, certificate: str, key: str, *, uid: str = "", nonce: bytes = b"", origin: str | None = None) -> int | None:
    """Answers the hub's challenge as told; the code the hub closes with, None when it greets."""
    tls = ssl.create_default_context(cafile=str(rig.folder / "ca.crt"))
    url = f"https://127.0.0.1:{rig.edge_port}{websocket.PATH}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, ssl=tls, protocols=(websocket.PROTOCOL,), origin=origin) as socket,
    ):
        asked = tunnel_pb2.Challenge.FromString((await socket.receive(5)).data)
        assert (asked.hub_uid, len(asked.nonce)) == ("hub-1", 32)
        content = b"\0".join((b"kubegems-tunnel-proof/1", (uid or asked.hub_uid).encode(), nonce or asked.nonce))
        proof = tunnel_pb2.Proof(certificate=certificate, signature=prove(key, content))
        await socket.send_bytes(proof.SerializeToString())
        answer = await socket.receive(5)
        return None if answer.type is aiohttp.WSMsgType.BINARY else socket.close_code


def _pair(rig: Rig, **facts: Any) -> Pair:
    return rig.pair(f"knock-{uuid.uuid4()}", uri=f"{SPIFFE}/cluster/{uuid.uuid4()}", **facts)


async def test_whoever_holds_the_key_comes_in_and_nobody_else(rig: Rig) -> None:
    """Another key, an old nonce, another hub's challenge, another CA, an expired certificate, nonsense; the control greets."""
    good, other = _pair(rig), _pair(rig)
    assert await _knock(rig, good.certificate, good.key) is None
    stranger, _ = Authority.create("stranger", now=CLOCK.now())
    foreign = stranger.issue("x", now=CLOCK.now(), lifetime=timedelta(days=1), uri=f"{SPIFFE}/cluster/{uuid.uuid4()}")
    ended = _pair(rig, lifetime=timedelta(seconds=-5))
    for attempt in (
        _knock(rig, good.certificate, other.key),
        _knock(rig, good.certificate, good.key, nonce=b"n" * 32),
        _knock(rig, good.certificate, good.key, uid="hub-2"),
        _knock(rig, foreign.certificate, foreign.key),
        _knock(rig, ended.certificate, ended.key),
        _knock(rig, "no certificate", good.key),
    ):
        assert await attempt == 1008


async def test_a_revoked_certificate_gets_no_further_than_the_greeting(rig: Rig) -> None:
    """Fleet's word counts here as for the other carrier."""
    uid = str(uuid.uuid4())
    pair = rig.pair(uid, uri=f"{SPIFFE}/cluster/{uid}")
    rig.refused.add(uid)
    try:
        assert await _knock(rig, pair.certificate, pair.key) in (1000, 1005, 1006)
        assert not rig.links.online(uid)
    finally:
        rig.refused.discard(uid)


async def test_browsers_and_plain_requests_are_refused(rig: Rig) -> None:
    """403 for an Origin, 426 without an upgrade."""
    tls = ssl.create_default_context(cafile=str(rig.folder / "ca.crt"))
    url = f"https://127.0.0.1:{rig.edge_port}{websocket.PATH}"
    pair = _pair(rig)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await _knock(rig, pair.certificate, pair.key, origin="https://evil.example")
    assert refused.value.status == 403
    async with aiohttp.ClientSession() as session, session.get(url, ssl=tls) as reply:
        assert reply.status == 426


async def test_it_goes_through_the_proxy_of_the_environment(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS_PROXY by CONNECT: the proxy sees where to and nothing else; with NO_PROXY it is not asked."""
    asked: list[str] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0]
        asked.append(line)
        host, _, port = line.split()[1].rpartition(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer))

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    try:
        uid = str(uuid.uuid4())
        async with rig.agent(uid, kubeconfig(tmp_path / "k", NOWHERE), carrier="websocket"):
            assert (await rig.links.call(uid, GET_INVENTORY, ASK, DEV, 5)).inventory.kubernetes_version == DEV.user
        assert asked == [f"CONNECT 127.0.0.1:{rig.edge_port} HTTP/1.1"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with rig.agent(str(uuid.uuid4()), kubeconfig(tmp_path / "k", NOWHERE), carrier="websocket"):
            pass
        assert len(asked) == 1
    finally:
        server.close()


async def test_a_stuck_reader_holds_little_and_delays_nobody(rig: Rig, tmp_path: Path) -> None:
    """Back-pressure reaches the API server through the WebSocket too; calls beside it go on."""
    sent = 0

    async def endless(_came: Came, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await writer.drain()
            sent += 0x10000

    async with upstream() as up:
        up.answer = endless
        uid = str(uuid.uuid4())
        async with rig.agent(uid, kubeconfig(tmp_path / "k", up.url), carrier="websocket"):
            exchange = await rig.links.kubernetes(uid, Request("GET", "/api/v1/pods"), None, DEV)
            async with exchange:
                before = -1
                while before != sent:
                    before = sent
                    await asyncio.sleep(0.3)
                assert sent < 16 * 1024 * 1024  # windows and the kernel's own buffers
                for _ in range(20):
                    await rig.links.call(uid, GET_INVENTORY, ASK, DEV, 5)
                size = 0
                while size < 8 * 1024 * 1024:
                    size += len(await exchange.read())


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(65536):
            writer.write(content)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
