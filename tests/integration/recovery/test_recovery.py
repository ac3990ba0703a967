"""Rotation and loss of the CA, rotation of keys, backup and restore: on a whole platform, under an agent that is connected."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from libs.bus.server import Keys
from libs.crypt import ca
from libs.faults import PermissionDenied
from services.agent.enrolment import Enrolment
from services.agent.identity import IdentityFiles
from tests.integration.recovery.rig import HUB, SHOP, Hub, commands, environment, furnish
from tests.kit.eventually import eventually
from tests.kit.kubectl import Kubectl
from tests.kit.platform import platform

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """A platform of this module's own, with a tenant."""
    folder = tmp_path_factory.mktemp("recovery")
    folder.chmod(0o700)
    async with platform(folder / "stack", jaeger=False) as running:
        found = Hub(running)
        await furnish(found)
        yield found


@pytest.fixture
def cluster(hub: Hub, tmp_path: Path) -> Kubectl:
    """The member cluster's own admin."""
    return Kubectl(Path(hub.platform.endpoints["kubeconfig"]), tmp_path)


async def test_the_ca_is_rotated_under_a_connected_agent(hub: Hub, cluster: Kubectl) -> None:
    """Each step waits until agents have heard of the one before; the cluster keeps its uid, its agent and its objects."""
    made = await environment(hub, "rotated")
    uid, agent = (await hub.online())["uid"], hub.platform.pid("agent")
    old = ca.Authority.load(hub.layout.certificates / "ca.crt", hub.layout.certificates / "ca.key")
    await eventually(lambda: _told(hub), within=30, every=0.5, what="the agent was seen")
    code, said = await hub.rotation("switch")
    assert (code, "`begin` comes first" in said) == (1, True), said
    for step, following in (("begin", "switch"), ("switch", "retire"), ("retire", "")):
        code, said = await hub.rotation(step)
        assert code == 0, said
        if following:
            code, said = await hub.rotation(following)
            assert (code, "local" in said) == (1, True), said
        await hub.restart()
        assert (await hub.online())["uid"] == uid
        await eventually(lambda: _told(hub), within=30, every=0.5, what=f"agents heard of {step}")
    code, said = await hub.rotation("status")
    assert old.fingerprint not in said
    assert hub.platform.pid("agent") == agent
    (certificate, *_) = ca.certificates((hub.layout.root / "agent/agent.pem").read_text().partition("-----BEGIN PRIVATE")[0])
    assert not ca.issued_by(certificate, old.certificate)
    assert (await environment(hub, "after-rotation"))["uid"]
    assert (await hub.ready("rotated"))["uid"] == made["uid"]
    assert (await cluster.json("get", "environment.gems.kubegems.io", "acme-shop-rotated"))["metadata"]["uid"]


async def test_an_older_backup_is_restored_under_a_connected_agent(hub: Hub, cluster: Kubectl, tmp_path: Path) -> None:
    """Nothing is deleted; the agent asks; confirmed, it goes back, and what was made later stays until its owner looks at it."""
    prepare, backup, restore, *_ = commands("backup.md")
    kept = await environment(hub, "kept", cpu="1")
    variables = {"BACKUP": str(tmp_path / "backup")}
    code, said = await hub.shell(prepare + backup, **variables)
    assert code == 0, said
    assert {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "backup").iterdir()} == {"database.dump": 0, "keys.tar": 0}
    for name in ("later", "later-too"):
        await environment(hub, name)
    async with hub.admin() as admin:
        (await admin.call("PATCH", f"{SHOP}/kept", {"quota": {"limits.cpu": "2"}})).ok()
    await hub.ready("kept", cpu="2")
    before = await _objects(cluster)

    await hub.stop(*HUB)
    code, said = await hub.shell(prepare + restore, **variables)
    assert code == 0, said
    assert "good for a renewal" in said
    await _forget_newest_certificate(hub)
    await hub.start("gateway")
    await hub.start("msgbus", "worker")

    async def asks() -> Any:
        async with hub.admin() as admin:
            shown = await admin.get("/clusters/local")
        assert "is older than" in shown.get("confirmationNeeded", ""), shown
        return shown

    shown = await eventually(asks, within=90, every=0.5, what="the agent asks")
    assert await _objects(cluster) == before, "nothing is touched while it asks"
    generation = shown["confirmationNeeded"].partition("confirm generation ")[2].split()[0]
    async with hub.admin() as admin:
        await admin.post("/clusters/local:confirm", {"generation": generation})
    assert (await hub.ready("kept", cpu="1"))["uid"] == kept["uid"]

    async def back() -> None:
        objects = await _objects(cluster)
        assert objects.keys() == before.keys(), "nothing is removed by its absence"
        assert objects["acme-shop-kept"] == "1"

    await eventually(back, within=30, every=0.3)
    assert not (await hub.online()).get("confirmationNeeded")
    assert (await environment(hub, "after-restore"))["uid"]
    await _made_again(hub, cluster)


async def _made_again(hub: Hub, cluster: Kubectl) -> None:
    """An environment of the time between, made again: its name is taken until the cluster's admin lets it go; its namespace stays."""
    namespace = (await cluster.json("get", "namespace", "acme-shop-later"))["metadata"]["uid"]
    async with hub.admin() as admin:
        body = {"environmentId": "later", "environment": {"cluster": "clusters/local", "quota": {"limits.cpu": "1"}}}
        await admin.post(SHOP, body)

    async def told() -> None:
        async with hub.admin() as admin:
            shown = await admin.get(f"{SHOP}/later")
        assert "EARLIER_OBJECT" in json.dumps(shown), shown

    await eventually(told, within=30, every=0.3)
    variables = {"KUBECONFIG": hub.platform.endpoints["kubeconfig"], "NAMESPACE": "acme-shop-later"}
    code, said = await hub.shell(commands("backup.md")[-1], **variables)
    assert code == 0, said
    await hub.ready("later", within=60)
    assert (await cluster.json("get", "namespace", "acme-shop-later"))["metadata"]["uid"] == namespace


async def test_what_was_revoked_after_a_backup_is_not_good_again(hub: Hub, tmp_path: Path) -> None:
    """A thief's certificate, revoked by joining anew after the backup; a session and a join token of before; an API key is listed."""
    prepare, backup, restore, revoke, *_ = commands("backup.md")
    variables = {"BACKUP": str(tmp_path / "backup"), "CLUSTER": "local"}
    uid = (await hub.online())["uid"]
    async with hub.admin() as admin:
        await admin.post("/users/admin/apiKeys", {"apiKeyId": "kept", "apiKey": {}})
        forgotten = await admin.post("/clusters/local/joinTokens")
        code, said = await hub.shell(prepare + backup, **variables)
        assert code == 0, said
        shutil.copytree(hub.layout.root / "agent", tmp_path / "thief")
        await hub.joined_again(await admin.post("/clusters/local/joinTokens"))
        assert (await hub.online())["uid"] == uid
        thief = await _thief(hub, tmp_path)
        with pytest.raises(PermissionDenied, match="revoked"):
            await thief()

        await hub.stop(*HUB)
        code, said = await hub.shell(prepare + restore + revoke, **variables)
        assert code == 0, said
        assert "users/admin/apiKeys/kept" in said
        assert "revoked, join them again with a new token: local" in said
        await hub.start("gateway")
        await hub.start("msgbus", "worker")
        with pytest.raises(PermissionDenied, match="revoked"):
            await thief()
        assert (await admin.call("GET", "/clusters/local")).status == 401
    await eventually(lambda: _away(hub), within=30, every=0.3, what="nor is what its owner's agent had")
    async with hub.admin() as admin:
        states = {shown["name"]: shown["state"] for shown in (await admin.get("/clusters/local/joinTokens"))["joinTokens"]}
        assert states[forgotten["joinToken"]["name"]] == "REVOKED"
        join = await admin.post("/clusters/local/joinTokens")
    await hub.joined_again(join)
    assert (await hub.online())["uid"] == uid
    with pytest.raises(PermissionDenied, match="revoked"):
        await thief()
    assert (await environment(hub, "after-revocation"))["uid"]


async def _thief(hub: Hub, folder: Path) -> Callable[[], Awaitable[Any]]:
    """Renews with the agent's files as they were."""
    files = IdentityFiles(folder / "thief")
    identity = files.load()
    assert identity is not None
    pin = ca.fingerprint(ca.certificates(identity.ca_file.read_text())[0])
    enrolment = Enrolment(hub.agent_settings["KUBEGEMS_AGENT_ENROLMENT_ADDRESS"], pin, files, version="thief")
    return lambda: enrolment.renew(identity)


async def test_signing_keys_are_made_anew_under_a_session(hub: Hub) -> None:
    """Old access tokens end at once everywhere, the session goes on with its refresh token, and inner services follow."""
    async with hub.admin() as admin:
        await admin.get("/jobs")
        file = hub.layout.secrets / "database.url"
        code, said = await hub.shell(f"{sys.executable} -m services.gateway.identity.rotate --database-url-file {file}")
        assert code == 0, said

        async def refused() -> None:
            assert (await admin.call("GET", "/tenants")).status == 401

        await eventually(refused, within=5, what="old tokens are refused")
    async with hub.admin() as again:

        async def served() -> None:
            assert (await again.call("GET", "/jobs")).status == 200

        await eventually(served, within=5, what="inner services know the new key")
        events = await again.get("/audit/events?pageSize=50")
        assert "identity/rotateKeys" in json.dumps(events)


async def test_the_master_key_is_changed_under_a_connected_agent(hub: Hub) -> None:
    """A new key in its file, signing keys made anew under it: users sign in again, the agent comes back, nothing else is lost."""
    master, file = hub.layout.certificates / "master.key", hub.layout.secrets / "database.url"
    before = master.read_text()
    await hub.stop(*HUB)
    code, said = await hub.shell(
        f"umask 077; python -c 'from libs.crypt.box import Box; print(Box.new_key())' > {master}"
        f" && python -m services.gateway.identity.rotate --database-url-file {file}"
    )
    assert code == 0, said
    assert (master.read_text() != before, master.stat().st_mode & 0o077) == (True, 0)
    await hub.start("gateway")
    await hub.start("msgbus", "worker")
    await hub.online()
    async with hub.admin() as admin:
        first = await admin.get("/audit/events?pageSize=2")
        assert await admin.get(f"/audit/events?pageSize=2&pageToken={first['nextPageToken']}")
    assert (await environment(hub, "after-master"))["uid"]


async def test_nats_keys_are_made_anew_under_a_connected_agent(hub: Hub) -> None:
    """Issuer, callout and services' keys: files taken away, NATS and the hub started anew; hints reach the agent again."""
    seeds = {path.name: path.read_text() for path in (hub.layout.secrets / "nats").glob("*.nk")}
    assert "issuer.nk" in seeds
    await hub.stop("worker", "msgbus", "gateway", "nats")
    for name in seeds:
        (hub.layout.secrets / "nats" / name).unlink()
    nats = hub.platform.stack.hub._nats
    assert nats is not None
    nats.keys = Keys.ensure(hub.layout.secrets / "nats")  # a new start does so
    await nats.prepare()
    assert all((hub.layout.secrets / "nats" / name).read_text() != seed for name, seed in seeds.items())
    await hub.start("nats")
    await hub.start("gateway")
    await hub.start("msgbus", "worker")
    await hub.online()
    assert (await environment(hub, "after-nats"))["uid"]


async def test_after_the_ca_is_lost_a_cluster_joins_again_as_itself(hub: Hub, cluster: Kubectl) -> None:
    """A new CA trusts nobody of before; with a new token the agent is the same cluster, with the same objects."""
    uid, before = (await hub.online())["uid"], await _objects(cluster)
    code, said = await hub.rotation("replace")
    assert (code, "join again" in said) == (0, True), said
    await hub.restart()

    await eventually(lambda: _away(hub), within=30, every=0.3)
    async with hub.admin() as admin:
        join = await admin.post("/clusters/local/joinTokens")
    await hub.joined_again(join)
    assert (await hub.online())["uid"] == uid
    assert await _objects(cluster) == before
    assert (await environment(hub, "after-loss"))["uid"]


async def _away(hub: Hub) -> bool:
    async with hub.admin() as admin:
        return bool((await admin.get("/clusters/local"))["state"] == "OFFLINE")


async def _told(hub: Hub) -> bool:
    code, said = await hub.rotation("status")
    assert code == 0, said
    return said.rstrip().endswith("not heard of it: none")


async def _objects(cluster: Kubectl) -> dict[str, str]:
    """CPU limit of each Environment in the cluster."""
    items = (await cluster.json("get", "environments.gems.kubegems.io"))["items"]
    return {item["metadata"]["name"]: item["spec"]["resourceQuota"]["limits.cpu"] for item in items}


async def _forget_newest_certificate(hub: Hub) -> None:
    """As if the agent had joined after the backup."""
    connection: Any = await asyncpg.connect((hub.layout.secrets / "database.url").read_text().strip())
    try:
        sql = "DELETE FROM fleet.certificates WHERE issued = (SELECT max(issued) FROM fleet.certificates)"
        assert await connection.execute(sql) == "DELETE 1"
        await connection.execute("UPDATE fleet.clusters SET revoked_until = NULL")
    finally:
        await connection.close()
