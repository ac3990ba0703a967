"""The main job, step by step, on a platform of its own: what the walk-through shows, and what it must never do."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.world import DEV, ENVIRONMENT_QUOTA, NAMESPACE, PASSWORD, World
from tests.kit.eventually import eventually
from tests.kit.kubectl import Kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
KINDS = ("tenants", "tenantresourcequotas", "tenantnetworkpolicies")
COMMON = {"gems.kubegems.io/tenant": "initech", "gems.kubegems.io/project": "shop", "gems.kubegems.io/environment": "dev"}


async def test_the_cluster_holds_our_objects_and_what_the_controller_made_of_them(platform: World) -> None:
    """Four custom resources; namespace, quota, limits, network policy and role bindings."""
    cluster = platform.cluster
    for kind in KINDS:
        assert (await cluster.json("get", f"{kind}.gems.kubegems.io", "initech"))["metadata"]["annotations"]["gems.kubegems.io/uid"]
    environment = await cluster.json("get", "environments.gems.kubegems.io", NAMESPACE)
    assert {c["type"]: c["status"] for c in environment["status"]["conditions"]}["Ready"] == "True"
    namespace = await cluster.json("get", "namespace", NAMESPACE)
    assert COMMON.items() <= namespace["metadata"]["labels"].items()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    quota = await cluster.json("-n", NAMESPACE, "get", "resourcequota", "default")
    assert {name: quota["spec"]["hard"][name] for name in ENVIRONMENT_QUOTA} == ENVIRONMENT_QUOTA
    for kind in ("limitrange", "networkpolicy"):
        assert (await cluster.json("-n", NAMESPACE, "get", kind, "default"))["metadata"]["labels"].items() >= COMMON.items()
    bindings = (await cluster.json("-n", NAMESPACE, "get", "rolebindings"))["items"]
    groups = {(b["roleRef"]["name"], s["name"]) for b in bindings for s in b["subjects"]}
    assert ("gems:operator", "gems:environment:initech/shop/dev:operator") in groups
    assert ("gems:reader", "gems:project:initech/shop:test") in groups


async def test_the_api_shows_the_environment_ready_with_quota_and_conditions(platform: World) -> None:
    """READY with conditions, used and hard; `dev` sees it, `eve` cannot tell it from one that never was."""
    shown = await platform.dev.get(f"/{DEV}")
    assert shown["state"] == "READY"
    assert {c["type"] for c in shown["conditions"]} >= {"NamespaceReady", "QuotaReady", "RightsReady"}
    hard = shown["hard"]
    assert {name: hard[name] for name in ENVIRONMENT_QUOTA} == ENVIRONMENT_QUOTA
    assert set(shown["used"]) >= set(ENVIRONMENT_QUOTA)
    foreign = await platform.eve.call("GET", f"/{DEV}")
    missing = await platform.eve.call("GET", f"/{DEV}x")
    assert (foreign.status, missing.status) == (404, 404)
    assert foreign.body["error"]["message"].replace("dev", "devx", 1) == missing.body["error"]["message"] or (
        foreign.reason == missing.reason
    )


async def test_a_deployment_by_kubectl_is_seen_live_by_its_owner_and_the_admin_alone(platform: World) -> None:
    """The owner and the admin get the Deployment, its ReplicaSet and its Pods until Running; the other tenant nothing."""
    kubectl = await platform.kubectl(platform.dev)
    streams = {name: _Listener(user) for name, user in (("dev", platform.dev), ("admin", platform.admin), ("eve", platform.eve))}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream.run(), name=f"stream of {name}") for name, stream in streams.items()]
        await eventually(lambda: all(s.opened for s in streams.values()), within=10)
        (await kubectl("create", "deployment", "web", "--image=nginx:1.27", "--replicas=2")).ok()
        (await kubectl("rollout", "status", "deployment/web", "--timeout=30s")).ok()
        for name in ("dev", "admin"):
            await eventually(streams[name].saw_running_web, within=10, what=f"{name} sees the pods Running")
        for task in tasks:
            task.cancel()
    assert not [e for e in streams["eve"].changes if e.get("namespace") == NAMESPACE]


class _Listener:
    """Collects what one user's stream brings."""

    def __init__(self, user: Any) -> None:
        self._user = user
        self.opened = False
        self.changes: list[dict[str, Any]] = []

    async def run(self) -> None:
        async with aclosing(self._user.events("/messages:subscribe?snapshot=true")) as events:
            async for event in events:
                self.opened = self.opened or event["kind"] == "SNAPSHOT_END"
                if event["kind"] == "CHANGE":
                    self.changes.append(event["change"])

    def saw_running_web(self) -> bool:
        mine = [c for c in self.changes if c.get("namespace") == NAMESPACE and c["object"].startswith("web")]
        kinds = {c["kind"] for c in mine}
        running = {c["object"] for c in mine if c["kind"] == "Pod" and c["columns"].get("phase") == "Running"}
        return kinds >= {"Deployment", "ReplicaSet", "Pod"} and len(running) >= 2


@pytest.mark.parametrize("websockets", [True, False], ids=["WebSocket", "SPDY"])
async def test_kubectl_reads_logs_and_runs_commands(platform: World, websockets: bool) -> None:
    """Through the hub, by both protocols; output, error output and failure come back."""
    kubectl = await platform.kubectl(platform.dev)
    pod = await _running_pod(kubectl)
    assert (await kubectl("logs", pod)).ok()
    # No stdin: KWOK's exec does not pass its end on, with or without the hub between.
    done = await kubectl("exec", pod, "--", "sh", "-c", "echo hello; echo problem >&2; exit 3", websockets=websockets)
    assert done.out == "hello\n"
    assert done.code != 0
    assert "problem" in done.err


async def test_kubectl_watches(platform: World) -> None:
    """A watch through the hub brings a change that is made after it began."""
    kubectl = await platform.kubectl(platform.dev)
    watching = await kubectl.start("get", "configmaps", "--watch-only", "-o", "name")
    try:
        assert watching.stdout is not None
        reading = asyncio.create_task(watching.stdout.readline(), name="first watched line")

        async def touched() -> bool:
            (await kubectl("create", "configmap", "seen", "--from-literal=a=b")).ok()
            (await kubectl("delete", "configmap", "seen")).ok()
            return reading.done()

        await eventually(touched, within=15, every=0.5)
        assert await reading == b"configmap/seen\n"
    finally:
        watching.kill()
        await watching.wait()


async def _running_pod(kubectl: Kubectl) -> str:
    if (await kubectl("get", "deployment", "web")).code:
        (await kubectl("create", "deployment", "web", "--image=nginx:1.27")).ok()
    (await kubectl("rollout", "status", "deployment/web", "--timeout=30s")).ok()
    return str((await kubectl.json("get", "pods", "-l", "app=web"))["items"][0]["metadata"]["name"])


@pytest.mark.parametrize(
    "args",
    [
        ("-n", "globex-shop-dev", "get", "pods"),
        ("-n", "globex-shop-dev", "create", "configmap", "x"),
        ("-n", "kube-system", "get", "secrets"),
        ("get", "nodes"),
        ("get", "namespaces"),
        ("-n", NAMESPACE, "delete", "resourcequota", "default"),
        ("-n", NAMESPACE, "create", "rolebinding", "x", "--clusterrole=cluster-admin", "--user=x"),
        ("label", "namespace", NAMESPACE, "gems.kubegems.io/tenant=globex", "--overwrite"),
    ],
    ids=" ".join,
)
async def test_what_a_user_may_not_is_the_api_servers_own_403(platform: World, args: tuple[str, ...]) -> None:
    """Foreign namespaces, cluster-scoped kinds, our own quota and rights; the user named is the impersonated one."""
    kubectl = await platform.kubectl(platform.dev)
    done = await kubectl(*args)
    assert done.code != 0
    assert re.search('forbidden: User "gems:user:ivy" cannot [a-z]+ resource ', done.err), done.err


async def test_the_admin_sees_all(platform: World) -> None:
    """The positive control of the refusals."""
    kubectl = await platform.kubectl(platform.admin)
    assert "globex-shop-dev" in (await kubectl("get", "namespaces", "-o", "name")).ok()
    (await kubectl("get", "nodes")).ok()
    (await kubectl("-n", "kube-system", "get", "secrets")).ok()


async def test_the_inventory_appears_on_the_cluster(platform: World) -> None:
    """The scheduled job counts version, nodes, capacity and what is allocated."""

    async def counted() -> Any:
        inventory = (await platform.admin.get("/clusters/local")).get("inventory", {})
        assert inventory.get("nodes", 0) >= 2
        assert inventory.get("allocated"), inventory  # nothing asks for anything before the first pods run
        return inventory

    inventory = await eventually(counted, within=90, what="inventory on the cluster")
    assert inventory["kubernetesVersion"].startswith("v1.")
    assert {"cpu", "memory", "pods"} <= set(inventory["capacity"])


async def test_a_usage_report_runs_as_its_user_with_live_progress(platform: World) -> None:
    """`dev` starts it and watches it; the result names hard, used and pods; `eve` sees no such job."""
    job = await platform.dev.post("/jobs", {"job": {"kind": "environment-usage-report", "target": DEV}})
    states = []
    async with aclosing(platform.dev.events(f"/{job['name']}:watch")) as events:
        async for event in events:
            states.append(event)
    assert states[-1]["state"] == "SUCCEEDED", states[-1]
    assert states[-1]["progress"]["percent"] == 100
    assert states[-1]["result"]["namespace"] == NAMESPACE
    assert states[-1]["result"]["hard"].items() >= {"limits.cpu": "4"}.items()
    assert (await platform.eve.call("GET", f"/{job['name']}")).status == 404
    unknown = await platform.dev.call("POST", "/jobs", {"job": {"kind": "no-such", "target": DEV}})
    assert (unknown.status, list(unknown.fields)) == (400, ["job.kind"])
    refused = await platform.eve.call("POST", "/jobs", {"job": {"kind": "environment-usage-report", "target": DEV}})
    assert refused.status in (403, 404)


async def test_the_audit_log_holds_who_did_what(platform: World) -> None:
    """Calls of REST and kubectl, successes and refusals, with address, time and trace id; no secret in any of them."""
    await platform.eve.call("DELETE", f"/{DEV}")
    kubectl = await platform.kubectl(platform.dev)
    (await kubectl("exec", await _running_pod(kubectl), "--", "true")).ok()

    async def recorded(actor: str, method: str, outcome: str) -> Any:
        query = quote(f'actor = "users/{actor}" AND method = "{method}" AND outcome = "{outcome}"')
        found = (await platform.admin.get(f"/audit/events?filter={query}")).get("auditEvents", [])
        assert found, (actor, method, outcome)
        return found

    events = []
    for actor, method, outcome in (
        ("admin", "/kubegems.tenancy.v1.TenantService/CreateTenant", "OK"),
        ("eve", "/kubegems.tenancy.v1.EnvironmentService/DeleteEnvironment", "DENIED"),
        ("ivy", "kubernetes/exec", "OK"),
    ):
        events += await eventually(partial(recorded, actor, method, outcome), within=5, what=f"record of {method}")
    assert events[0]["address"] in ("127.0.0.1", "::1")
    assert len(events[0]["traceId"]) == 32
    assert events[0]["time"]
    text = str(events)
    assert PASSWORD not in text
    assert "accessToken" not in text
    assert (await platform.dev.call("GET", "/audit/events")).body.get("auditEvents", []) == []


@pytest.mark.parametrize("kind", ["resourcequota/default", "limitrange/default", "networkpolicy/default"])
async def test_a_deleted_part_comes_back(platform: World, kind: str) -> None:
    """Drift is repaired within 5 s."""
    cluster = platform.cluster
    before = await cluster.json("-n", NAMESPACE, "get", kind)
    (await cluster("-n", NAMESPACE, "delete", kind)).ok()

    async def back() -> bool:
        found = await cluster("-n", NAMESPACE, "get", kind, "-o", "jsonpath={.metadata.uid}")
        return found.code == 0 and found.out != before["metadata"]["uid"]

    await eventually(back, within=5, every=0.2, what=f"{kind} back")


async def test_an_edited_quota_and_a_deleted_binding_are_mended(platform: World) -> None:
    """A change by hand does not last, whoever made it."""
    cluster = platform.cluster
    (await cluster("-n", NAMESPACE, "patch", "resourcequota/default", "--type=merge", "-p", '{"spec":{"hard":{"limits.cpu":"99"}}}')).ok()
    name = (await cluster.json("-n", NAMESPACE, "get", "rolebindings"))["items"][0]["metadata"]["name"]
    (await cluster("-n", NAMESPACE, "delete", "rolebinding", name)).ok()

    async def mended() -> bool:
        cpu = (await cluster("-n", NAMESPACE, "get", "resourcequota/default", "-o", "jsonpath={.spec.hard.limits\\.cpu}")).out
        return cpu == "4" and (await cluster("-n", NAMESPACE, "get", "rolebinding", name)).code == 0

    await eventually(mended, within=5, every=0.2, what="quota and binding mended")
