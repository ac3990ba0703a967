"""Push on the whole platform: kinds beyond the base set from kubectl to subscriber, and a decision from REST to inbox."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.world import NAMESPACE, QUOTA, World
from tests.kit.platform import Platform

OWN = ("--namespace", NAMESPACE)
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [
            {"name": "v1beta1", "served": True, "storage": False, "schema": {"openAPIV3Schema": {"type": "object"}}},
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}},
        ],
    },
}
MAY_WATCH = {  # what a cluster's owner adds for a kind of its own
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "widgets-to-observer", "labels": {"gems.kubegems.io/aggregate-to-observer": "true"}},
    "rules": [{"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["get", "list", "watch"]}],
}
WIDGET = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "gear", "namespace": NAMESPACE}}


async def watched(stack: Platform) -> set[str]:
    """The kinds that the agent watches now, by its own account."""
    environ = Path(f"/proc/{stack.pid('agent')}/environ").read_bytes().split(b"\0")
    port = next(e.partition(b"=")[2].decode() for e in environ if e.startswith(b"KUBEGEMS_AGENT_METRICS_PORT="))
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as reply:
        return set(re.findall(r'^kubegems_agent_observed_watching\{resource="([^"]+)"\} 1', await reply.text(), re.MULTILINE))


async def until(events: Any, kind: str, name: str = "") -> dict[str, Any]:
    """The next event of a kind, and of an object."""
    async with asyncio.timeout(30):
        async for event in events:
            if event["kind"] == kind and name in ("", event.get("change", {}).get("object")):
                return dict(event)
    raise AssertionError("the stream ended")


async def test_a_kind_beyond_the_base_set_is_observed_for_as_long_as_someone_subscribes(
    platform: World, stack: Platform, eventually: Any
) -> None:
    """Config maps: nobody's before; listed, then live from kubectl to SSE; not watched any more when the last one leaves."""
    kind = "configmaps.v1."
    assert kind not in await watched(stack)
    (await platform.cluster("create", "configmap", "before", "--from-literal=a=b", *OWN)).ok()
    async with aclosing(platform.dev.events("/messages:subscribe?resources=configmaps&snapshot=true")) as events:
        assert (await until(events, "CHANGE", "before"))["freshness"]["source"] in ("SNAPSHOT", "LIVE")
        await until(events, "SNAPSHOT_END")
        assert kind in await watched(stack)
        (await platform.cluster("create", "configmap", "later", "--from-literal=a=b", *OWN)).ok()
        live = await until(events, "CHANGE", "later")
        assert (live["change"]["verb"], live["change"]["namespace"], live["freshness"]["source"]) == ("ADDED", NAMESPACE, "LIVE")
        (await platform.cluster("delete", "configmap", "later", "before", *OWN)).ok()
        assert (await until(events, "CHANGE", "later"))["change"]["verb"] == "DELETED"

    async def gone() -> bool:
        return kind not in await watched(stack)

    await eventually(gone, within=20, what="not observed any more")


async def test_a_kind_of_a_definition_of_the_clusters_own_is_found_by_its_group(platform: World, stack: Platform, eventually: Any) -> None:
    """`widgets.example.com` names no version: the agent asks the API server which it prefers, and may watch what its owner lets it."""
    for given in (CRD, MAY_WATCH):
        (await platform.cluster("apply", "-f", "-", stdin=json.dumps(given))).ok()
    try:
        (await platform.cluster("wait", "--for=condition=Established", "crd/widgets.example.com")).ok()
        async with aclosing(platform.dev.events("/messages:subscribe?resources=widgets.example.com&snapshot=true")) as events:
            await until(events, "SNAPSHOT_END")
            assert "widgets.v1.example.com" in await watched(stack)
            (await platform.cluster("apply", "-f", "-", *OWN, stdin=json.dumps(WIDGET))).ok()
            change = (await until(events, "CHANGE", "gear"))["change"]
            assert (change["group"], change["version"], change["resource"], change["kind"]) == ("example.com", "v1", "widgets", "Widget")
    finally:
        (await platform.cluster("delete", "crd/widgets.example.com", "clusterrole/widgets-to-observer", "--ignore-not-found")).ok()


async def test_a_quota_decision_is_in_the_inbox_of_the_tenants_admin_and_in_nobody_elses(platform: World, eventually: Any) -> None:
    """From the transaction that made it through outbox and msgbus; a member without that role has none."""
    await platform.admin.post("/users", {"userId": "tina", "user": {}, "initialPassword": "correct horse battery"})
    await platform.admin.put("/tenants/initech/members/tina", {"role": "ADMIN"})
    tina = await platform.nobody.sign_in("tina", "correct horse battery")
    await platform.admin.put("/tenants/initech/quotas/local", {"hard": QUOTA | {"limits.cpu": "21"}})

    async def told() -> Any:
        found = (await tina.get("/users/tina/inbox")).get("messages", [])
        assert [m for m in found if m["category"] == "QUOTA_DECIDED" and "limits.cpu 21" in m["body"]], found
        return found

    await eventually(told, within=15)
    assert not [m for m in (await platform.eve.get("/users/eve/inbox")).get("messages", []) if "initech" in m["title"]]
    await platform.admin.put("/tenants/initech/quotas/local", {"hard": QUOTA})
