"""`/ws/messages` at the real edge: a gateway and a msgbus process on a real PostgreSQL and NATS, a cluster that the test makes up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from deploy.local import part as parts
from libs.bus import Bus, streams
from libs.kube.resources import PODS
from services.gateway.edge.messages_socket import BEARER, PROTOCOL
from tests.integration.push.cluster import UID, Cluster
from tests.integration.push.rig import msgbus_part
from tests.kit.gateway import PASSWORD, Gateway, configuration, running
from tests.kit.rest import User

OTHER = "https://console.example.com"
_UNAUTHENTICATED = 3000


@dataclass(slots=True)
class Scene:
    """The edge and a cluster behind it."""

    gateway: Gateway
    cluster: Cluster
    admin: User
    asking: aiohttp.ClientSession

    async def socket(self, token: str = "", *protocols: str, **headers: str) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket of whoever holds the token."""
        sent = ({"Authorization": f"Bearer {token}"} if token else {}) | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.asking.ws_connect(
            f"{self.gateway.config.public_url}/ws/messages", protocols=protocols, headers=sent, ssl=self.admin.tls
        )

    async def refused(self, token: str = "", *, query: str = "", **headers: str) -> tuple[int, str]:
        """Status and reason of an upgrade that must not happen."""
        sent = ({"Authorization": f"Bearer {token}"} if token else {}) | {name.replace("_", "-"): value for name, value in headers.items()}
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "a" * 22 + "=="}
        url = f"{self.gateway.config.public_url}/ws/messages{query}"
        async with self.asking.get(url, headers=upgrade | sent, ssl=self.admin.tls) as reply:
            body = await reply.json(content_type=None)
            return reply.status, str(body["error"]["details"][0]["reason"])


@pytest.fixture(scope="module")
async def scene(  # noqa: PLR0917 -- fixtures
    tmp_path_factory: pytest.TempPathFactory, database: Any, nats_server: Any, hub_certificates: Any, free_ports: Any, eventually: Any
) -> AsyncGenerator[Scene, None]:
    """Everything started, the cluster known and heard."""
    folder = tmp_path_factory.mktemp("socket")
    folder.chmod(0o700)
    port, metrics = free_ports.take("socket-msgbus"), free_ports.take("socket-metrics")
    config = configuration(
        folder, database, nats_server, hub_certificates, free_ports, msgbus_address=f"127.0.0.1:{port}", cors_origins=OTHER
    )  # fmt: skip
    replica = msgbus_part(folder, hub_certificates, nats_server, 0, port, metrics, config.internal_address)
    tasks: list[asyncio.Task[None]] = []

    def spawn(name: str, work: Any) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work, name=name))
        return tasks[-1]

    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running(config))
        connection = await asyncpg.connect(database.dsn)
        await connection.execute("INSERT INTO fleet.clusters (uid, name, joined) VALUES ($1, 'local', true)", UUID(UID))
        await connection.close()
        bus = await Bus.connect(nats_server.url, name="gateway", tls=nats_server.tls(), nkey_seed_file=nats_server.seed_file())
        stack.push_async_callback(bus.close)
        await bus.ensure_stream(streams.cluster(UID))
        await stack.enter_async_context(parts.running(replica))
        asking = await stack.enter_async_context(aiohttp.ClientSession())
        cluster = Cluster(bus, spawn)
        try:
            await cluster.observe(PODS)
            admin = await gateway.nobody.sign_in("admin", PASSWORD)
            made = Scene(gateway, cluster, admin, asking)
            await eventually(lambda: _heard(made), within=30, what="the first change is heard")
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _heard(scene: Scene) -> bool:
    async with contextlib.aclosing(_events(await scene.socket(scene.admin.token), {"resources": ["pods"]})) as events:
        await _next(events, "SUBSCRIBED")
        await scene.cluster.put("acme", "first")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                return await _next_change(events) == ("acme", "first")
    return False


async def _events(socket: aiohttp.ClientWebSocketResponse, asked: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Subscribes, then what comes, until the server closes."""
    async with socket:
        await socket.send_json(asked)
        async for message in socket:
            yield json.loads(message.data)


async def test_the_token_travels_in_a_header_and_never_in_the_address(scene: Scene) -> None:
    """`Authorization`, or a browser's subprotocol, is taken; a query string, even beside a good token, is not."""
    token = scene.admin.token
    for name in ("access_token", "token", "x"):
        assert (await scene.refused(query=f"?{name}={token}"))[0] == 400
        assert (await scene.refused(token, query=f"?{name}=1"))[0] == 400
    assert (await scene.refused())[0] == 401
    assert (await scene.refused(token[:-4] + "AAAA"))[0] == 401
    assert (await scene.refused(Sec_WebSocket_Protocol=f"{PROTOCOL}, {BEARER}{token[:-4]}AAAA"))[0] == 401
    socket = await scene.socket("", PROTOCOL, BEARER + token)
    async with socket:
        assert socket._response.headers["Sec-WebSocket-Protocol"] == PROTOCOL, "the token is not sent back"
        await socket.send_json({"resources": ["pods"]})
        assert (await socket.receive_json(timeout=5))["kind"] == "SUBSCRIBED"


async def test_only_pages_of_named_origins_may_connect(scene: Scene) -> None:
    """An Origin is ours or a configured one to the letter; likenesses, `null` and an empty one are refused, programs have none."""
    token, ours = scene.admin.token, scene.gateway.config.public_url
    for origin in (ours, OTHER):
        async with await scene.socket(token, Origin=origin):
            pass
    async with await scene.socket(token):
        pass
    likenesses = (f"{OTHER}.evil.example", f"{OTHER}:444", OTHER.replace("https", "http"), f"{OTHER}/", OTHER.upper(), "null", "", "*")
    for origin in likenesses:
        assert await scene.refused(token, Origin=origin) == (403, "ORIGIN_REFUSED"), origin


async def test_other_selectors_are_sent_over_the_same_socket(scene: Scene) -> None:
    """What was asked for first comes no more, what is asked for now comes, on one stream."""
    socket = await scene.socket(scene.admin.token)
    async with asyncio.timeout(20), contextlib.aclosing(_events(socket, {"selectors": [{"namespace": "acme"}]})) as events:
        first = await anext(events)
        assert first["kind"] == "SUBSCRIBED"
        await scene.cluster.put("globex", "unasked")
        await scene.cluster.put("acme", "asked")
        assert await _next_change(events) == ("acme", "asked")
        await socket.send_json({"selectors": [{"namespace": "globex"}]})
        again = await _next(events, "SUBSCRIBED")
        assert again["subscription"] == first["subscription"]
        await scene.cluster.put("acme", "no more")
        await scene.cluster.put("globex", "now")
        assert await _next_change(events) == ("globex", "now")


async def test_what_is_no_request_ends_the_socket_with_its_reason(scene: Scene) -> None:
    """A frame that is wrong is answered by an error frame that names the field, then by the close."""
    async with asyncio.timeout(10), await scene.socket(scene.admin.token) as socket:
        await socket.send_json({"resource": ["pods"]})
        refused = await socket.receive_json()
        assert refused["error"]["status"] == "INVALID_ARGUMENT"
        assert "resource" in json.dumps(refused["error"]["details"])
        assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1008


async def test_a_revoked_session_ends_its_socket_and_no_other(scene: Scene) -> None:
    """Signed out elsewhere: an error frame within two seconds, then nothing, not even of what changes meanwhile."""
    leaving = await scene.gateway.nobody.sign_in("admin", PASSWORD)
    async with asyncio.timeout(20):
        ending, staying = await scene.socket(leaving.token), await scene.socket(scene.admin.token)
        async with (
            contextlib.aclosing(_events(ending, {"resources": ["pods"]})) as ends,
            contextlib.aclosing(_events(staying, {"resources": ["pods"]})) as stays,
        ):
            assert [(await anext(events))["kind"] for events in (ends, stays)] == ["SUBSCRIBED", "SUBSCRIBED"]
            await leaving.delete("/users/me/sessions/current")
            started = asyncio.get_running_loop().time()
            last = [event async for event in ends][-1]
            took = asyncio.get_running_loop().time() - started
            assert last["error"]["status"] == "UNAUTHENTICATED"
            assert ending.close_code == _UNAUTHENTICATED
            assert took < 2, f"{took:.1f} s"
            await scene.cluster.put("acme", "after")
            assert await _next_change(stays) == ("acme", "after")
    assert (await scene.refused(leaving.token))[0] == 401


async def _next(events: AsyncGenerator[dict[str, Any], None], kind: str) -> dict[str, Any]:
    async for event in events:
        if event.get("kind") == kind:
            return event
    raise AssertionError("the socket ended")


async def _next_change(events: AsyncGenerator[dict[str, Any], None]) -> tuple[str, str]:
    change = (await _next(events, "CHANGE"))["change"]
    return change["namespace"], change["object"]
