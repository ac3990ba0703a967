"""The cluster link on the whole platform: health, pause and diff, kubectl signed in by itself, acting as another, the owner's policy."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import DEV, ENVIRONMENT_QUOTA, NAMESPACE, PASSWORD, World
from tests.kit.platform import Platform

PLUGIN = Path(__file__).parents[2] / "deploy/kubectl/kubectl_gems.py"
POLICY = "gems-agent-policy"
OWN = ("--namespace", "kubegems-system")


async def test_a_clusters_health_is_measured(platform: World, eventually: Any) -> None:
    """Certificate end, round trip, agent version, no reasons; a tenant's user sees none of it."""

    async def measured() -> Any:
        shown = await platform.admin.get("/clusters/local")
        assert "roundTrip" in shown, shown
        return shown

    shown = await eventually(measured, within=15)
    assert (shown["state"], shown.get("reasons", [])) == ("ONLINE", [])
    assert shown["certificateExpireTime"] > shown["seenTime"]
    assert 0 <= float(shown["roundTrip"].removesuffix("s")) < 1
    assert "localPolicy" in shown
    assert set(await platform.dev.get("/clusters/local")) <= {"name", "displayName", "state", "inventory"}


async def test_a_paused_cluster_waits_and_the_diff_says_for_what(platform: World, eventually: Any) -> None:
    """A change stays in the hub, the diff names its field; resumed it is applied, and the diff is empty."""
    await platform.admin.post("/clusters/local:pause")
    try:
        quota = ENVIRONMENT_QUOTA | {"limits.cpu": "3"}
        changed = await platform.admin.call("PATCH", f"/{DEV}", {"quota": quota})
        changed.ok()

        async def differs() -> Any:
            diff = await platform.admin.get("/clusters/local:diff")
            found = [o for o in diff.get("objects", []) if o["name"] == NAMESPACE]
            assert found, diff
            return diff["paused"], found[0]

        paused, found = await eventually(differs, within=10)
        assert (paused, found["action"]) == (True, "UPDATE")
        assert '"3"' in json.dumps([f["desired"] for f in found["fields"]]).replace("\\", "")
        assert (await platform.admin.get(f"/{DEV}"))["state"] == "PENDING"
        await platform.admin.post("/clusters/local:resume")
        await platform.ready()
    finally:
        await platform.admin.post("/clusters/local:resume")
        (await platform.admin.call("PATCH", f"/{DEV}", {"quota": ENVIRONMENT_QUOTA})).ok()
    await platform.ready()
    diff = await platform.admin.get("/clusters/local:diff")
    assert [o for o in diff.get("objects", []) if o["name"] == NAMESPACE] == []
    assert (await platform.dev.call("GET", "/clusters/local:diff")).status in (403, 404)


async def test_kubectl_stays_signed_in_by_itself(platform: World, stack: Platform, tmp_path: Path) -> None:
    """One login, one kubeconfig for all clusters without a secret inside, and kubectl asks the plugin."""
    (tmp_path / "bin").mkdir()
    plugin = tmp_path / "bin/kubectl-gems"
    plugin.write_text(f"#!{sys.executable} -I\n" + PLUGIN.read_text().partition("\n")[2])
    plugin.chmod(0o755)
    (tmp_path / "password").write_text(PASSWORD)
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "KUBEGEMS_HOME": str(tmp_path / "gems"), "HOME": str(tmp_path)}
    config = (await platform.dev.call("GET", "/clusters/-:kubeconfig?credential=EXEC")).ok()
    assert "token:" not in config
    (tmp_path / "config").write_text(config)
    login = (str(plugin), "login", stack.endpoints["rest"], "--ca-file", stack.endpoints["ca"], "--username", "ivy")
    await _ran(*login, "--password-file", str(tmp_path / "password"), env=env)
    kubectl = str(Path(sys.prefix) / "bin/kubectl")
    out = await _ran(kubectl, "--kubeconfig", str(tmp_path / "config"), "auth", "whoami", "-o", "json", env=env)
    assert json.loads(out)["status"]["userInfo"]["username"] == "gems:user:ivy"
    await _ran(str(plugin), "logout", stack.endpoints["rest"], env=env)


async def test_an_admin_acts_as_another_user_and_nobody_else_does(platform: World) -> None:
    """`--as`: the API server sees that user with its own groups; another's `--as` is refused."""
    admin, dev = await platform.kubectl(platform.admin), await platform.kubectl(platform.dev)
    seen = json.loads((await admin("auth", "whoami", "-o", "json", "--as", "gems:user:ivy")).ok())["status"]["userInfo"]
    assert (seen["username"], "gems:environment:initech/shop/dev:operator" in seen["groups"]) == ("gems:user:ivy", True)
    assert "gems:platform:admin" not in seen["groups"]
    assert (await admin("get", "pods", "--as", "gems:user:ivy")).code == 0
    assert (await admin("get", "pods", "--as", "gems:user:ivy", "--namespace", "kube-system")).code != 0
    for refused in (await dev("get", "pods", "--as", "gems:user:eve"), await admin("get", "pods", "--as", "system:admin")):
        assert (refused.code, "orbidden" in refused.err) == (1, True), refused.err


@pytest.fixture
async def policy(platform: World) -> AsyncIterator[Path]:
    """The owner's policy: nobody deletes pods in ivy's namespace."""
    file = platform.home / "policy.yaml"
    file.write_text(
        f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {POLICY}, namespace: kubegems-system}}\n"
        f'data:\n  policy.yaml: |\n    deny: [{{verbs: [delete, deletecollection], namespaces: ["{NAMESPACE}"]}}]\n'
    )
    (await platform.cluster("apply", "-f", str(file), *OWN)).ok()
    yield file
    await platform.cluster("delete", "configmap", POLICY, *OWN)


async def test_the_clusters_owner_has_the_last_word(platform: World, policy: Path, eventually: Any) -> None:
    """Denied through the hub for everyone, shown on the cluster, not to be changed through the hub; gone with the ConfigMap."""
    dev, admin = await platform.kubectl(platform.dev), await platform.kubectl(platform.admin)

    async def shown() -> Any:
        return (await platform.admin.get("/clusters/local"))["localPolicy"].get("deny", [])

    async def told() -> None:
        assert [rule["namespaces"] for rule in await shown()] == [[NAMESPACE]]

    await eventually(told, within=10)
    for who in (dev, admin):
        refused = await who("delete", "pod", "web", "--ignore-not-found")
        assert (refused.code, "the cluster's owner denies this" in refused.err) == (1, True), refused.err
    assert (await dev("get", "pods")).code == 0
    for loosen in (("delete", "configmap", POLICY, *OWN), ("patch", "configmap", POLICY, *OWN, "-p", '{"data":{"policy.yaml":""}}')):
        refused = await admin(*loosen)
        assert (refused.code, "belongs to the cluster's owner" in refused.err) == (1, True), refused.err
    (await platform.cluster("delete", "configmap", POLICY, *OWN)).ok()

    async def gone() -> None:
        assert await shown() == []

    await eventually(gone, within=10)
    assert (await dev("delete", "pod", "web", "--ignore-not-found")).code == 0


async def _ran(*command: str, env: dict[str, str]) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env={**os.environ, **env})
    out, complaint = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, complaint.decode()
    return out.decode()
