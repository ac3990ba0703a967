"""The client against a real API server."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from libs import faults
from libs.kube import JSON_PATCH, Conflict, KindMissing, KubeClient, Principal, Resource
from libs.kube.resources import CONFIG_MAPS, NAMESPACES, PODS

pytestmark = pytest.mark.cluster


def config_map(namespace: str, name: str = "a", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


async def test_create_get_patch_delete(kube: KubeClient, namespace: str) -> None:
    """An object's life; both patch types work."""
    made = await kube.create(CONFIG_MAPS, config_map(namespace, x="1"), namespace)
    assert (await kube.get(CONFIG_MAPS, "a", namespace))["metadata"]["uid"] == made["metadata"]["uid"]
    assert (await kube.patch(CONFIG_MAPS, "a", {"data": {"y": "2"}}, namespace))["data"] == {"x": "1", "y": "2"}
    operations = [{"op": "test", "path": "/data/x", "value": "1"}, {"op": "remove", "path": "/data/x"}]
    assert (await kube.patch(CONFIG_MAPS, "a", operations, namespace, patch_type=JSON_PATCH))["data"] == {"y": "2"}
    await kube.delete(CONFIG_MAPS, "a", namespace)
    with pytest.raises(faults.NotFound) as raised:
        await kube.get(CONFIG_MAPS, "a", namespace)
    assert not isinstance(raised.value, KindMissing)


async def test_a_name_that_is_taken(kube: KubeClient, namespace: str) -> None:
    """Creating twice is AlreadyExists."""
    await kube.create(CONFIG_MAPS, config_map(namespace), namespace)
    with pytest.raises(faults.AlreadyExists):
        await kube.create(CONFIG_MAPS, config_map(namespace), namespace)


async def test_replace_refuses_what_is_not_current(kube: KubeClient, namespace: str) -> None:
    """An old resourceVersion is a Conflict and changes nothing."""
    old = await kube.create(CONFIG_MAPS, config_map(namespace, x="1"), namespace)
    await kube.replace(CONFIG_MAPS, {**old, "data": {"x": "2"}})
    with pytest.raises(Conflict):
        await kube.replace(CONFIG_MAPS, {**old, "data": {"x": "3"}})
    assert (await kube.get(CONFIG_MAPS, "a", namespace))["data"] == {"x": "2"}


async def test_apply_owns_fields(kube: KubeClient, namespace: str) -> None:
    """Apply creates, drops fields it no longer names, and takes another manager's field only by force."""
    await kube.apply(CONFIG_MAPS, config_map(namespace, x="1", y="1"), field_manager="one")
    applied = await kube.apply(CONFIG_MAPS, config_map(namespace, x="1"), field_manager="one")
    assert applied["data"] == {"x": "1"}
    with pytest.raises(Conflict):
        await kube.apply(CONFIG_MAPS, config_map(namespace, x="2"), field_manager="two")
    assert (await kube.apply(CONFIG_MAPS, config_map(namespace, x="2"), field_manager="two", force=True))["data"] == {"x": "2"}


async def test_status_is_written_alone(kube: KubeClient) -> None:
    """The status subresource takes a patch."""
    name = f"kube-test-{secrets.token_hex(4)}"
    await kube.create(NAMESPACES, {"metadata": {"name": name}})
    condition = {"type": "Seen", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    patched = await kube.patch_status(NAMESPACES, name, {"status": {"conditions": [condition]}})
    assert patched["status"]["conditions"][0]["type"] == "Seen"
    await kube.delete(NAMESPACES, name)


async def test_delete_only_the_one_meant(kube: KubeClient, namespace: str) -> None:
    """Another uid is a Conflict and the object stays."""
    made = await kube.create(CONFIG_MAPS, config_map(namespace), namespace)
    with pytest.raises(Conflict):
        await kube.delete(CONFIG_MAPS, "a", namespace, uid="00000000-0000-0000-0000-000000000000")
    await kube.delete(CONFIG_MAPS, "a", namespace, uid=made["metadata"]["uid"])


async def test_list_goes_through_all_pages(kube: KubeClient, namespace: str) -> None:
    """Paging by one gives each object once."""
    for name in ("a", "b", "c"):
        await kube.create(CONFIG_MAPS, config_map(namespace, name), namespace)
    names = [found["metadata"]["name"] async for found in kube.list(CONFIG_MAPS, namespace, page_size=1)]
    assert [name for name in names if name in "abc"] == ["a", "b", "c"]


async def test_a_user_is_an_argument(kube: KubeClient, namespace: str) -> None:
    """The server judges the named user; the next call is the client's own again."""
    nobody = Principal("gems:user:nobody", uid="1b4e28ba-2fa1-11d2-883f-0016d3cca427", groups=("gems:project:a/b:ops",))
    with pytest.raises(faults.PermissionDenied, match="gems:user:nobody"):
        await kube.get(PODS, "a", namespace, impersonate=nobody)
    with pytest.raises(faults.NotFound):
        await kube.get(PODS, "a", namespace)


async def test_invalid_objects_name_their_fields(kube: KubeClient, namespace: str) -> None:
    """A wrong name is Invalid, with the field."""
    with pytest.raises(faults.Invalid) as raised:
        await kube.create(CONFIG_MAPS, config_map(namespace, "A_B"), namespace)
    assert raised.value.violations[0].field == "metadata.name"


async def test_a_missing_kind(kube: KubeClient) -> None:
    """A kind that is not served is KindMissing."""
    with pytest.raises(KindMissing):
        await kube.page(Resource("nowhere.example.com", "v1", "things", "Thing"))


async def test_a_server_that_is_away(tmp_path: Path) -> None:
    """Nobody listening is Unavailable, without the address in the message."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{name: x, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "users: [{name: x, user: {token: t}}]\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n"
    )
    async with await KubeClient.from_kubeconfig(kubeconfig) as client:
        with pytest.raises(faults.Unavailable) as raised:
            await client.get(PODS, "a", "b")
    assert "127.0.0.1" not in raised.value.message


async def test_a_kubeconfig_that_is_none(tmp_path: Path) -> None:
    """A missing file is a ValueError with its path."""
    with pytest.raises(ValueError, match="none"):
        await KubeClient.from_kubeconfig(tmp_path / "none")


@pytest.mark.parametrize("name", ["system:masters", "admin", "gems:", "", "gems:a\r\nImpersonate-Group: system:masters"])
def test_only_our_own_can_be_impersonated(name: str) -> None:
    """A user or group that is not `gems:…` is refused before any request."""
    with pytest.raises(ValueError, match="impersonated"):
        Principal(name)
    with pytest.raises(ValueError, match="impersonated"):
        Principal("gems:user:dev", groups=(name,))
