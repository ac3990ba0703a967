"""What a deletion takes away: all, our own, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from libs.faults import NotFound
from libs.kube import KubeClient
from libs.kube.resources import (
    CONFIG_MAPS,
    ENVIRONMENTS,
    LIMIT_RANGES,
    NAMESPACES,
    NETWORK_POLICIES,
    RESOURCE_QUOTAS,
    ROLE_BINDINGS,
)
from services.controller.tests.conftest import Story

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("controller")]


async def test_with_a_tombstone_the_namespace_goes(story: Story) -> None:
    """The Environment stays until its namespace is gone."""
    await story.begin()
    name = await story.environment()
    await story.ready(name)
    await story.tombstone(name)
    await story.absent(ENVIRONMENTS, name, within=30)
    with pytest.raises(NotFound):
        await story.kube.get(NAMESPACES, name)


async def test_without_a_tombstone_the_namespace_stays(story: Story) -> None:
    """Somebody's `kubectl delete` of an Environment costs no data, and the next apply finds everything again."""
    await story.begin()
    name = await story.environment()
    await story.ready(name)
    before = await story.kube.get(NAMESPACES, name)
    await story.kube.delete(ENVIRONMENTS, name)
    await story.absent(ENVIRONMENTS, name)
    assert "deletionTimestamp" not in (await story.kube.get(NAMESPACES, name))["metadata"]
    await story.kube.get(RESOURCE_QUOTAS, "default", name)
    await story.environment()
    after = await story.ready(name)
    assert after["status"]["namespaceUid"] == before["metadata"]["uid"]


async def test_a_tombstone_that_a_newer_wish_has_outlived_does_not_count(story: Story) -> None:
    """Tombstone 2, then wanted again at generation 5, then a stray delete: the namespace stays."""
    await story.begin()
    name = await story.environment()
    found = await story.ready(name)
    annotations = {"gems.kubegems.io/tombstone": "2", "gems.kubegems.io/generation": "5"}
    await story.put(ENVIRONMENTS, name, found["spec"], **annotations)
    await story.kube.delete(ENVIRONMENTS, name)
    await story.absent(ENVIRONMENTS, name)
    assert "deletionTimestamp" not in (await story.kube.get(NAMESPACES, name))["metadata"]


async def test_del_labels_takes_only_what_is_ours(story: Story) -> None:
    """Bindings, quota, limits, policy, labels and annotations go; the namespace and what others made in it stay."""
    await story.begin(isolated=True)
    name = await story.environment(deletePolicy="delLabels")
    await story.ready(name)
    await story.kube.create(CONFIG_MAPS, {"metadata": {"name": "theirs"}}, name)
    quota = {"metadata": {"name": "theirs", "labels": {"gems.kubegems.io/tenant": story.tenant}}, "spec": {"hard": {"pods": "5"}}}
    await story.kube.create(RESOURCE_QUOTAS, quota, name)
    await story.kube.patch(NAMESPACES, name, {"metadata": {"labels": {"theirs": "kept"}}})
    await story.tombstone(name)
    await story.absent(ENVIRONMENTS, name)
    left = [f["metadata"]["name"] for r in (LIMIT_RANGES, NETWORK_POLICIES, ROLE_BINDINGS) async for f in story.kube.list(r, name)]
    assert left == []
    assert [f["metadata"]["name"] async for f in story.kube.list(RESOURCE_QUOTAS, name)] == ["theirs"]
    await story.kube.get(CONFIG_MAPS, "theirs", name)
    metadata = (await story.kube.get(NAMESPACES, name))["metadata"]
    assert metadata["labels"] == {"theirs": "kept", "kubernetes.io/metadata.name": name}
    assert not any("gems.kubegems.io" in key for key in metadata.get("annotations", {}))


async def test_a_namespace_that_was_refused_is_not_deleted_with_the_environment(story: Story, kube: KubeClient) -> None:
    """What was never ours does not go, tombstone or not."""
    name = story.name("dev")
    await kube.create(NAMESPACES, {"metadata": {"name": name}})
    await story.begin()
    await story.environment()
    await story.reason(name, "NamespaceReady", "NamespaceExists")
    await story.tombstone(name)
    await story.absent(ENVIRONMENTS, name)
    assert "deletionTimestamp" not in (await kube.get(NAMESPACES, name))["metadata"]


async def test_what_holds_a_deletion_up_is_told(story: Story) -> None:
    """An object with a foreign finalizer keeps the namespace; the condition names it until it is freed."""
    await story.begin()
    name = await story.environment()
    await story.ready(name)
    await story.kube.create(CONFIG_MAPS, {"metadata": {"name": "stuck", "finalizers": ["example.com/held"]}}, name)
    await story.tombstone(name)

    async def told() -> Any:
        found = (await story.conditions(name)).get("NamespaceReady", {})
        return found.get("reason") == "Terminating" and "example.com/held" in found["message"]

    await story.wait(told, within=30, what="deletion explained")
    await story.kube.patch(CONFIG_MAPS, "stuck", {"metadata": {"finalizers": None}}, name)
    await story.absent(ENVIRONMENTS, name, within=40)
