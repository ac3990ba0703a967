"""Credentials: read again when the server refuses them, and never left lying about."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from libs import faults
from libs.kube import KubeClient, Principal, connection
from libs.kube.resources import PODS


class Server:
    """An API server that knows one token and keeps the headers of what it was asked."""

    def __init__(self) -> None:
        self.token = "one"
        self.asked: list[Any] = []

    async def answer(self, request: web.Request) -> web.Response:
        """401 for another token."""
        self.asked.append(request.headers.copy())
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"kind": "Status", "code": 401, "reason": "Unauthorized", "message": "Unauthorized"}, status=401)
        return web.json_response({"metadata": {"name": "a"}})

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Its port."""
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
        await runner.cleanup()


def kubeconfig(file: Path, port: int, token: str) -> Path:
    file.write_text(
        f"apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{name: x, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n"
        f"users: [{{name: x, user: {{token: {token}}}}}]\ncontexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
    )
    return file


async def test_a_rotated_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a 401 the kubeconfig is read again and the request repeated once; a token that is still wrong is told."""
    monkeypatch.setattr(connection, "_RELOAD_AFTER", 0.0)
    server = Server()
    async with server.serve() as port:
        file = kubeconfig(tmp_path / "kubeconfig", port, "one")
        async with await KubeClient.from_kubeconfig(file) as client:
            await client.get(PODS, "a", "n")
            server.token = "two"
            with pytest.raises(faults.Unauthenticated):
                await client.get(PODS, "a", "n")
            kubeconfig(file, port, "two")
            assert (await client.get(PODS, "a", "n"))["metadata"]["name"] == "a"
    assert [found["Authorization"] for found in server.asked] == ["Bearer one", "Bearer one", "Bearer one", "Bearer two"]


async def test_a_user_is_sent_whole(tmp_path: Path) -> None:
    """User, uid, each group and extra as headers of their own; none of it on the next call."""
    server = Server()
    user = Principal("gems:user:dev", "u1", ("gems:a", "gems:b"), {"gems.kubegems.io/trace": ("t",)})
    async with server.serve() as port, await KubeClient.from_kubeconfig(kubeconfig(tmp_path / "k", port, "one")) as client:
        await client.get(PODS, "a", "n", impersonate=user)
        await client.get(PODS, "a", "n")
    first, second = server.asked
    assert first.getall("Impersonate-User") == ["gems:user:dev"]
    assert first.getall("Impersonate-Uid") == ["u1"]
    assert first.getall("Impersonate-Group") == ["gems:a", "gems:b"]
    assert first.getall("Impersonate-Extra-gems.kubegems.io%2Ftrace") == ["t"]
    assert not [name for name in second if name.lower().startswith("impersonate")]


@pytest.mark.cluster
async def test_no_key_is_left_behind(cluster: Any) -> None:
    """Inline certificates and keys of a kubeconfig are in no temporary file once it is loaded."""
    before = set(Path(tempfile.gettempdir()).iterdir())
    async with await KubeClient.from_kubeconfig(cluster.kubeconfig) as client:
        await client.get_path("/version")
        left = {file for file in set(Path(tempfile.gettempdir()).iterdir()) - before if file.is_file() and b"PRIVATE" in file.read_bytes()}
    assert not left
