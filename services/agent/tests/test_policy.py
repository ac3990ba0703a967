"""The local policy: what it denies, how it is read, and that nobody loosens it through the hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import yaml

from libs import faults
from libs.kube import KubeClient, Principal
from libs.kube.resources import CONFIG_MAPS
from libs.tunnel.kubernetes import Request, Target
from services.agent.policy import KEY, NAME, DeniedHere, LocalPolicy, Policy, PolicyUnknown, Rule, parse
from services.agent.policy_watch import PolicyWatch

DEV = Principal("gems:user:dev", "u", ("gems:environment:acme/shop/dev:operator",))
ADMIN = Principal("gems:user:root", "r", ("gems:platform:admin",))
SERVICE = Principal("gems:service:desired-state")
NAMESPACE = "kubegems-system"


def asked(line: str) -> Target:
    method, _, target = line.partition(" ")
    path, _, query = target.partition("?")
    return Request(method, path, query).target()


def denied(rules: list[dict[str, list[str]]], who: Principal, line: str) -> bool:
    policy = LocalPolicy(NAMESPACE)
    policy.put(parse({KEY: yaml.safe_dump({"deny": rules})}))
    assert policy.current is not None
    assert not policy.current.problem
    try:
        policy.check(who, asked(line))
    except DeniedHere as fault:
        return "rule 1" in fault.message
    return False


@pytest.mark.parametrize(
    ("rule", "who", "line", "expected"),
    [
        ({"users": ["dev"]}, DEV, "GET /api/v1/pods", True),
        ({"users": ["gems:user:d*"]}, DEV, "GET /version", True),
        ({"users": ["dev"]}, ADMIN, "GET /api/v1/pods", False),
        ({"groups": ["gems:platform:*"]}, ADMIN, "GET /api/v1/nodes", True),
        ({"groups": ["gems:platform:*"]}, DEV, "GET /api/v1/nodes", False),
        ({"verbs": ["exec"]}, DEV, "GET /api/v1/namespaces/a/pods/p/exec?command=sh", True),
        ({"verbs": ["create"]}, DEV, "POST /api/v1/namespaces/a/pods/p/exec?command=sh", True),
        ({"verbs": ["log"]}, DEV, "GET /api/v1/namespaces/a/pods/p/log", True),
        ({"verbs": ["delete"]}, DEV, "DELETE /api/v1/namespaces/a/pods", False),
        ({"verbs": ["delete*"]}, DEV, "DELETE /api/v1/namespaces/a/pods", True),
        ({"namespaces": ["prod-*"]}, DEV, "GET /api/v1/namespaces/prod-a/pods", True),
        ({"namespaces": ["prod-*"]}, DEV, "DELETE /api/v1/namespaces/prod-a", True),
        ({"namespaces": ["prod-*"]}, DEV, "GET /api/v1/namespaces/dev-a/pods", False),
        ({"namespaces": ["prod-*"]}, DEV, "GET /api/v1/pods?watch=1", True),
        ({"namespaces": ["prod-*"]}, DEV, "GET /apis/example.com/v1/anythings", True),
        ({"namespaces": ["prod-*"]}, DEV, "GET /apis/example.com/v1/environments", True),
        ({"namespaces": ["prod-*"]}, DEV, "GET /apis/gems.kubegems.io/v1beta1/environments", False),
        ({"namespaces": ["prod-*"]}, DEV, "GET /api/v1/nodes", False),
        ({"verbs": ["exec"], "namespaces": ["prod-*"]}, ADMIN, "POST /api/v1/nodes/n/proxy/exec/prod-a/web/c?command=sh", True),
        ({"verbs": ["log"], "namespaces": ["prod-*"]}, ADMIN, "GET /api/v1/nodes/n/proxy/containerLogs/prod-a/web/c", True),
        ({"verbs": ["exec"], "namespaces": ["prod-*"]}, ADMIN, "GET /api/v1/nodes/n", False),
        ({"namespaces": ["prod-*"]}, DEV, "GET /version", False),
        ({"users": ["dev"], "verbs": ["delete"]}, DEV, "GET /api/v1/namespaces/a/pods/p", False),
        ({"users": ["dev"], "verbs": ["delete"]}, DEV, "DELETE /api/v1/namespaces/a/pods/p", True),
        ({"users": ["*"]}, SERVICE, "GET /api/v1/pods", False),
    ],
)  # fmt: skip
def test_what_a_rule_denies(rule: dict[str, list[str]], who: Principal, line: str, *, expected: bool) -> None:
    """All its fields must match; across all namespaces counts as in each; the hub's unattended work is not people's."""
    assert denied([rule], who, line) is expected


@pytest.mark.parametrize(
    "line",
    [
        f"PATCH /api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}",
        f"PUT /api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}",
        f"DELETE /api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}",
        f"DELETE /api/v1/namespaces/{NAMESPACE}/configmaps",
        f"POST /api/v1/namespaces/{NAMESPACE}/configmaps",
        f"DELETE /api/v1/namespaces/{NAMESPACE}",
    ],
)
@pytest.mark.parametrize("who", [ADMIN, SERVICE], ids=["admin", "service"])
def test_nobody_loosens_it_through_the_hub(line: str, who: Principal) -> None:
    """Not even a platform admin who is the cluster's admin, and also where there is no policy; reading it is another thing."""
    policy = LocalPolicy(NAMESPACE, Policy())
    with pytest.raises(DeniedHere, match="belongs to the cluster's owner"):
        policy.check(who, asked(line))
    policy.check(who, asked(f"GET /api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}"))
    policy.check(who, asked(f"PATCH /api/v1/namespaces/{NAMESPACE}/configmaps/other"))


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "deny: everything",
        "allow: []",
        "deny: [{}]",
        "deny: [{users: []}]",
        "deny: [{user: [a]}]",
        "deny: [{users: a}]",
        "deny: [{users: [1]}]",
    ],
)
def test_a_policy_that_cannot_be_understood_denies_people_everything(text: str) -> None:
    """It was meant to deny something; the message says what is wrong; the hub's own work goes on."""
    policy = LocalPolicy(NAMESPACE)
    policy.put(parse({KEY: text}))
    with pytest.raises(DeniedHere, match="cannot be understood"):
        policy.check(DEV, asked("GET /api/v1/pods"))
    policy.check(SERVICE, asked("GET /api/v1/pods"))


def test_until_it_is_known_people_wait() -> None:
    """Unavailable, not allowed; an empty policy denies nothing."""
    policy = LocalPolicy(NAMESPACE)
    with pytest.raises(PolicyUnknown):
        policy.check(DEV, asked("GET /api/v1/pods"))
    for text in ("", "deny:", "deny: []"):
        policy.put(parse({KEY: text}))
        policy.check(DEV, asked("GET /api/v1/pods"))
    assert parse({"other": ""}).problem


@pytest.fixture
async def agents(cluster: Any) -> AsyncIterator[KubeClient]:
    """The agent's own ServiceAccount."""
    async with await KubeClient.from_kubeconfig(await cluster.service_account_kubeconfig("gems-agent")) as client:
        yield client


@pytest.mark.cluster
async def test_it_follows_the_config_map_with_the_agents_own_rights(kube: KubeClient, agents: KubeClient, eventually: Any) -> None:
    """Made, changed, broken, gone; each change is told; the agent itself cannot write it."""
    policy = LocalPolicy(NAMESPACE)
    watching = PolicyWatch(agents, policy)
    changes: list[Policy | None] = []
    policy.listeners.add(lambda: changes.append(policy.current))
    assert "not read" in watching.told().problem
    task = asyncio.create_task(watching.run(), name="policy")
    body: dict[str, Any] = {"metadata": {"name": NAME, "namespace": NAMESPACE}, "data": {KEY: "deny: [{verbs: [exec]}]"}}
    try:
        await eventually(lambda: policy.current == Policy(), within=10, what="none")
        await kube.create(CONFIG_MAPS, body, NAMESPACE)
        await eventually(lambda: policy.current == Policy((Rule(verbs=("exec",)),)), within=5, what="made")
        assert [list(rule.verbs) for rule in watching.told().deny] == [["exec"]]
        with pytest.raises(faults.PermissionDenied):
            await agents.patch(CONFIG_MAPS, NAME, {"data": {KEY: ""}}, NAMESPACE)
        await kube.patch(CONFIG_MAPS, NAME, {"data": {KEY: "["}}, NAMESPACE)
        await eventually(lambda: policy.current is not None and bool(policy.current.problem), within=5, what="broken")
        await kube.delete(CONFIG_MAPS, NAME, NAMESPACE)
        await eventually(lambda: policy.current == Policy(), within=5, what="gone")
        assert len(changes) == 4
    finally:
        task.cancel()
        await asyncio.wait([task])
        with suppress(faults.NotFound):
            await kube.delete(CONFIG_MAPS, NAME, NAMESPACE)


@pytest.mark.cluster
async def test_without_the_right_to_read_it_there_is_none_and_the_hub_is_told(cluster: Any, eventually: Any) -> None:
    """An agent whose cluster has an older join manifest goes on, and says so."""
    async with await KubeClient.from_kubeconfig(await cluster.service_account_kubeconfig("gems-controller")) as client:
        policy = LocalPolicy("default")
        watching = PolicyWatch(client, policy)
        task = asyncio.create_task(watching.run(), name="policy")
        try:
            await eventually(lambda: policy.current == Policy(), within=10)
            assert "join manifest" in watching.told().problem
        finally:
            task.cancel()
            await asyncio.wait([task])
