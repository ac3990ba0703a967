"""What these tests share: a client of the real API server, and a namespace of its own for each test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.kube import KubeClient
from libs.kube.resources import NAMESPACES


@pytest.fixture(scope="session")
async def kube(cluster: Any) -> AsyncIterator[KubeClient]:
    """The cluster's admin."""
    async with await KubeClient.from_kubeconfig(cluster.kubeconfig) as client:
        yield client


@pytest.fixture
async def namespace(kube: KubeClient) -> AsyncIterator[str]:
    """A fresh namespace."""
    name = f"kube-test-{secrets.token_hex(4)}"
    await kube.create(NAMESPACES, {"metadata": {"name": name}})
    yield name
    await kube.delete(NAMESPACES, name)
