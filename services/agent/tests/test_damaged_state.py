"""A ConfigMap that holds nonsense: the pod lives and waits, and links to nobody until an admin has said what to do."""

from __future__ import annotations

import asyncio
import base64
import zlib
from pathlib import Path
from typing import Any, cast

import pytest

from libs.faults import NotFound
from libs.kube import KubeClient, Resource
from libs.kube.resources import CONFIG_MAPS
from services.agent import cluster_state
from services.agent.cluster_state import ClusterState


class Client:
    """Holds one ConfigMap, or none."""

    def __init__(self, content: bytes) -> None:
        self.content: bytes | None = content
        self.asked = 0

    async def get(self, resource: Resource, name: str, namespace: str) -> dict[str, Any]:
        if resource is not CONFIG_MAPS or self.content is None:
            raise NotFound(f"{name} in {namespace} does not exist")
        self.asked += 1
        return {"binaryData": {"uid-1.desired.bin": base64.b64encode(self.content).decode()}}


@pytest.mark.parametrize("content", [b"no zlib", zlib.compress(b"no set")], ids=["packed", "set"])
async def test_a_damaged_memory_is_waited_for(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is restored and nothing ends; once it was deleted the agent goes on, and no damaged file lies in its folder."""
    monkeypatch.setattr(cluster_state, "_PAUSE", (0.01, 0.1))
    client = Client(content)
    restoring = asyncio.create_task(ClusterState(cast("KubeClient", client), "kubegems-system", tmp_path).restore())
    async with asyncio.timeout(10):
        while client.asked < 3 and not restoring.done():
            await asyncio.sleep(0.01)
        assert not restoring.done()
        client.content = None
        await restoring
    assert not list(tmp_path.glob("desired/**/*.bin"))
