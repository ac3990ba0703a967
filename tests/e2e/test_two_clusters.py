"""Two member clusters of one hub: what holds in one says nothing in the other, and neither minds how the other is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import pytest
import yaml

from deploy.local.memberparts import MemberParts
from deploy.local.supervise import Supervisor
from kubegems.agent.v1 import desired_state_service_pb2
from libs.bus import subjects
from libs.bus.connection import Address, connect_once
from libs.kube.connection import Connection
from libs.rpc.pipeline import Pipeline
from libs.tunnel.tcp import client_tls
from services.agent.identity import Identity, IdentityFiles
from services.agent.link import AgentLink
from services.agent.proxy import Proxy
from tests.e2e.world import DEV, ENVIRONMENT_QUOTA, NAMESPACE, PASSWORD, QUOTA, World, make_environment
from tests.kit.eventually import eventually
from tests.kit.kubectl import Kubectl
from tests.kit.platform import Platform
from tests.kit.rest import User

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(240)]
SECOND = "local-2"
PROJECT = "tenants/initech/projects/shop"
FAR = f"{PROJECT}/environments/far"
FAR_NAMESPACE = "initech-shop-far"
_FETCH = desired_state_service_pb2.DESCRIPTOR.services_by_name["DesiredStateService"].methods_by_name["FetchDesiredState"]


@dataclass(slots=True)
class Two:
    """The platform with a second member cluster.

    Attributes:
        world: the platform.
        member: the second cluster's parts.
        supervisor: keeps them.
        far: kubectl as the second cluster's own admin.
        both: a user with environments on both.
        other: a user with an environment on the second alone.
    """

    world: World
    member: MemberParts
    supervisor: Supervisor
    far: Kubectl
    both: User
    other: User
    folder: Path

    async def kubectl(self, user: User, context: str, namespace: str) -> Kubectl:
        """kubectl of a user, with one context of the kubeconfig for all clusters."""
        path = self.folder / f"{abs(hash((user.token, context)))}.kubeconfig"
        path.touch(0o600)
        config = yaml.safe_load(str((await user.call("GET", "/clusters/-:kubeconfig")).ok()))
        path.write_text(yaml.safe_dump(config | {"current-context": context}))
        return Kubectl(path, self.folder, namespace)

    async def state(self, cluster: str) -> str:
        """State of a cluster."""
        return str((await self.world.admin.get(f"/clusters/{cluster}"))["state"])


@pytest.fixture(scope="module")
async def two(stack: Platform, platform: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    """A second cluster, started and joined as `make run CLUSTERS=2` does; a tenant and users on both."""
    said: list[str] = []
    supervisor = Supervisor(said.append)
    member = stack.stack.member(SECOND)
    folder = tmp_path_factory.mktemp("two")
    try:
        await member.start_control_plane(supervisor)
        await stack.stack.join(member, supervisor)
        far = Kubectl(member.kubeconfig, folder)
        admin = platform.admin
        for user in ("bea", "odo"):
            await admin.post("/users", {"userId": user, "user": {"displayName": user}, "initialPassword": PASSWORD})
        both, other = [await platform.nobody.sign_in(user, PASSWORD) for user in ("bea", "odo")]
        made = Two(platform, member, supervisor, far, both, other, folder)
        await eventually(lambda: _is(made, SECOND, "ONLINE"), within=60, what="second cluster online")
        await admin.put(f"/tenants/initech/quotas/{SECOND}", {"hard": QUOTA})
        await make_environment(admin, PROJECT, "far", cluster=f"clusters/{SECOND}")
        for environment, user in ((DEV, "bea"), (FAR, "bea"), (FAR, "odo")):
            await admin.put(f"/{environment}/members/{user}", {"role": "OPERATOR"})
        await platform.ready(FAR, within=60)
        yield made
    finally:
        await supervisor.stop()


async def _is(two: Two, cluster: str, state: str) -> bool:
    return await two.state(cluster) == state


async def test_a_tenant_lives_in_both(two: Two) -> None:
    """Each environment is where it was put, and nowhere else; both report."""
    near = two.world.cluster
    assert (await two.far("get", "namespace", FAR_NAMESPACE)).code == 0
    assert (await near("get", "namespace", NAMESPACE)).code == 0
    assert (await near("get", "namespace", FAR_NAMESPACE)).code != 0
    assert (await two.far("get", "namespace", NAMESPACE)).code != 0
    for name, cluster in ((DEV, "local"), (FAR, SECOND)):
        shown = await two.world.ready(name)
        assert shown["cluster"] == f"clusters/{cluster}"


async def test_one_kubeconfig_reaches_both(two: Two) -> None:
    """A context for each cluster that the user may see, each to its own API server, the token of one no good at the other."""
    text = str((await two.both.call("GET", "/clusters/-:kubeconfig")).ok())
    assert {"name: local", f"name: {SECOND}"} <= {line.strip(" -") for line in text.splitlines()}
    for context, namespace, admin in (("local", NAMESPACE, two.world.cluster), (SECOND, FAR_NAMESPACE, two.far)):
        user = await two.kubectl(two.both, context, namespace)
        (await user("create", "configmap", "here", f"--from-literal=cluster={context}")).ok()
        seen = await admin.json("-n", namespace, "get", "configmap", "here")
        assert seen["data"] == {"cluster": context}
    assert f"name: {SECOND}" not in str((await two.world.eve.call("GET", "/clusters/-:kubeconfig")).ok())


async def test_rights_in_one_are_none_in_the_other(two: Two) -> None:
    """The same namespace in the other cluster gives its operator nothing; a token of one cluster opens only that one.

    A member of the tenant may see both clusters, and the API server refuses; for another tenant there is no such cluster.
    """
    (await two.far("create", "namespace", NAMESPACE)).ok()
    try:
        both = await two.kubectl(two.both, SECOND, NAMESPACE)
        assert (await both("get", "pods", "--namespace", FAR_NAMESPACE)).code == 0
        refused = await both("get", "pods")
        assert (refused.code, "orbidden" in refused.err) == (1, True), refused.err
        for user, cluster, status in (
            (two.world.dev, "local", 200), (two.world.dev, SECOND, 403), (two.other, SECOND, 200), (two.other, "local", 403),
            (two.world.eve, SECOND, 404),
        ):  # fmt: skip
            namespace = NAMESPACE if cluster == "local" else FAR_NAMESPACE
            answer = await user.call("GET", f"//k8s/clusters/{cluster}/api/v1/namespaces/{namespace}/pods")
            assert answer.status == status, (cluster, answer.body)
        config = str((await two.both.call("GET", f"/clusters/{SECOND}:kubeconfig")).ok())
        token = next(line.split()[-1] for line in config.splitlines() if "token:" in line)
        bearer = User(two.both.base, two.both.tls, two.both.session, token)
        paths = {cluster: f"//k8s/clusters/{cluster}/api/v1/namespaces/{name}/pods" for cluster, name in _PLACES}
        assert (await bearer.call("GET", paths[SECOND])).status == 200
        assert (await bearer.call("GET", paths["local"])).status in (401, 403)
    finally:
        (await two.far("delete", "namespace", NAMESPACE, "--wait=false")).ok()


_PLACES = (("local", NAMESPACE), (SECOND, FAR_NAMESPACE))


def _identity(folder: Path) -> Identity:
    found = IdentityFiles(folder).load()
    assert found is not None
    return found


async def test_an_agents_certificate_is_good_for_its_own_cluster(two: Two, stack: Platform) -> None:
    """With the first one's certificate: its own set and no other, its own subjects and no other."""
    mine, theirs = _identity(stack.layout.root / "agent"), _identity(two.member.site.agent)
    fetched = await _fetched(mine, stack.layout.cluster / "gems-agent.kubeconfig")
    names = {found.name for found in fetched.objects}
    assert (NAMESPACE in names, FAR_NAMESPACE in names) == (True, False)
    uid, other = mine.addresses.cluster_uid, theirs.addresses.cluster_uid
    assert uid != other
    assert await _denied(mine, publish=[subjects.watermark(uid)], subscribe=[subjects.desired(uid), subjects.interest(uid)]) == []
    spied = [subjects.desired(other), subjects.interest(other), subjects.cluster(other)]
    assert len(await _denied(mine, publish=[subjects.watermark(other)], subscribe=spied)) == 4
    await eventually(lambda: _is(two, "local", "ONLINE"), within=30)


async def _fetched(identity: Identity, kubeconfig: Path) -> Any:
    """The set that the hub gives whoever holds a certificate; the real agent's tunnel is back right after."""
    files = (identity.certificate_file, identity.key_file, identity.ca_file)
    link = AgentLink(
        addresses=identity.addresses.tunnel_address, tls=lambda: client_tls(*files), cluster_uid=identity.addresses.cluster_uid,
        version="0.1.0", pipeline=Pipeline([]), proxy=Proxy(await Connection.from_kubeconfig(kubeconfig)),
    )  # fmt: skip
    task = asyncio.create_task(link.run())
    try:
        return await link.call(_FETCH, desired_state_service_pb2.FetchDesiredStateRequest(), timeout=20)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _denied(identity: Identity, *, publish: list[str], subscribe: list[str]) -> list[str]:
    """What the broker refuses its holder."""
    files = (identity.certificate_file, identity.key_file, identity.ca_file)
    inbox = subjects.inbox(identity.addresses.cluster_uid)
    refused: list[str] = []

    async def told(error: Exception) -> None:
        refused.append(str(error))

    client = await connect_once(Address(f"tls://{identity.addresses.nats_address}", "test", files, None, inbox), error_cb=told)
    try:
        for subject in subscribe:
            await client.subscribe(subject)
        for subject in publish:
            await client.publish(subject, b"")
        await client.flush()
        await asyncio.sleep(0)
        await client.flush()
    except nats.errors.Error as error:
        refused.append(str(error))
    finally:
        await client.close()
    return [text for text in refused if "permissions violation" in text.lower()]


async def test_one_offline_reads_like_that_while_the_other_works(two: Two) -> None:
    """kubectl says which cluster is offline and the API says OFFLINE; the other one answers; both are back when it is."""
    pid = two.supervisor.kept[f"{SECOND}/agent"].pid
    assert pid
    near, far = await two.kubectl(two.both, "local", NAMESPACE), await two.kubectl(two.both, SECOND, FAR_NAMESPACE)
    os.kill(pid, signal.SIGSTOP)
    try:
        await eventually(lambda: _is(two, SECOND, "OFFLINE"), within=40, what="silent agent seen as offline")
        refused = await far("get", "pods")
        assert (refused.code, f"cluster {SECOND} is offline" in refused.err) == (1, True), refused.err
        assert (await near("get", "pods")).code == 0
        assert await _is(two, "local", "ONLINE")
        assert (await two.world.admin.get(f"/{DEV}"))["state"] == "READY"
        quota = ENVIRONMENT_QUOTA | {"limits.cpu": "3"}
        (await two.world.admin.call("PATCH", f"/{FAR}", {"quota": quota})).ok()
        assert (await two.world.admin.get(f"/{FAR}"))["state"] != "READY"
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: _is(two, SECOND, "ONLINE"), within=60, what="back online")
    await two.world.ready(FAR, within=60)
    made = await two.far.json("-n", FAR_NAMESPACE, "get", "resourcequota", "default")
    assert made["spec"]["hard"]["limits.cpu"] == "3"
    assert (await far("get", "pods")).code == 0


async def test_removing_one_leaves_the_other_as_it_was(two: Two) -> None:
    """Its environment, quota and the cluster go; its agent is shut out; the first keeps its environments and serves on."""
    before = await two.world.cluster.json("get", "namespace", NAMESPACE)
    await two.world.admin.delete(f"/{FAR}")
    await eventually(lambda: _gone(two, f"/{FAR}"), within=60, what="far environment gone")
    await two.world.admin.delete(f"/tenants/initech/quotas/{SECOND}")
    await two.world.admin.delete(f"/clusters/{SECOND}")
    await eventually(lambda: _gone(two, f"/clusters/{SECOND}"), within=60, what="second cluster gone")
    log = two.member.site.logs / "agent.log"
    await eventually(lambda: "link.down" in log.read_text(), within=30, what="its agent is shut out")
    assert (await two.other.call("GET", f"//k8s/clusters/{SECOND}/api/v1/namespaces")).status == 404
    after = await two.world.cluster.json("get", "namespace", NAMESPACE)
    assert (after["metadata"]["uid"], after["metadata"]["labels"]) == (before["metadata"]["uid"], before["metadata"]["labels"])
    await two.world.ready(DEV)
    near = await two.kubectl(two.both, "local", NAMESPACE)
    assert (await near("get", "configmap", "here")).code == 0
    assert await _is(two, "local", "ONLINE")


async def _gone(two: Two, path: str) -> bool:
    return (await two.world.admin.call("GET", path)).status == 404
