"""Bad input: the right code, the field and the value named, and nothing changed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.world import DEV, World

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
SHOP = "/tenants/initech/projects/shop"


def environment(**fields: Any) -> dict[str, Any]:
    return {"environmentId": "bad", "environment": {"cluster": "clusters/local", "quota": {"limits.cpu": "1"}} | fields}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/tenants", {"tenantId": "ok", "tenant": {"nope": 1}}, 400, "tenant.nope"),
        ("/tenants", {"tenantId": "ok", "tenant": {"displayName": 5}}, 400, "tenant.display_name"),
        ("/tenants", {"tenantId": "Not_Good"}, 400, "tenant_id"),
        ("/tenants", {"tenantId": "initech"}, 409, ""),
        (f"{SHOP}/environments", environment(quota={"limits.cpu": "1000"}), 400, "limits.cpu"),
        (f"{SHOP}/environments", environment(quota={"limits.cpu": "many"}), 400, "environment.quota"),
        (f"{SHOP}/environments", environment(namespace="kube-system"), 400, "environment.namespace"),
        (f"{SHOP}/environments", environment(namespace="globex-shop-dev"), 400, "environment.namespace"),
        (f"{SHOP}/environments", environment(cluster="clusters/none"), 400, "environment.cluster"),
        ("/tenants/initech/projects/none/environments", environment(), 404, ""),
        ("/jobs", {"job": {"kind": "x", "target": "nonsense"}}, 400, "job.target"),
    ],
)
async def test_each_mistake_is_named_and_changes_nothing(platform: World, path: str, body: Any, status: int, field: str) -> None:
    """The message names field and value; the lists are as before."""
    before = [await platform.admin.get("/tenants"), await platform.admin.get(f"{SHOP}/environments")]
    answer = await platform.admin.call("POST", path, body)
    assert answer.status in ({status, 404} if "none" in str(body) else {status}), answer.body
    if field:
        assert field in str(answer.body), answer.body
    after = [await platform.admin.get("/tenants"), await platform.admin.get(f"{SHOP}/environments")]
    assert [names(b) for b in before] == [names(a) for a in after]


def names(page: dict[str, Any]) -> list[str]:
    return [item["name"] for items in page.values() if isinstance(items, list) for item in items]


async def test_a_stale_etag_is_refused(platform: World) -> None:
    """ABORTED; the newer change stays."""
    read = await platform.admin.get("/tenants/initech")
    await platform.admin.call("PATCH", "/tenants/initech?updateMask=description", {"description": "newer", "etag": read["etag"]})
    stale = await platform.admin.call("PATCH", "/tenants/initech?updateMask=description", {"description": "older", "etag": read["etag"]})
    assert (stale.status, stale.body["error"]["status"]) == (409, "ABORTED")
    assert (await platform.admin.get("/tenants/initech"))["description"] == "newer"


async def test_a_tenant_with_environments_is_not_deleted(platform: World) -> None:
    """FAILED_PRECONDITION says what is left."""
    answer = await platform.admin.call("DELETE", "/tenants/initech")
    assert answer.status == 400
    assert answer.body["error"]["status"] == "FAILED_PRECONDITION"
    assert "shop" in answer.body["error"]["message"] or "environment" in answer.body["error"]["message"]


async def test_a_repeated_request_id_makes_one_tenant(platform: World) -> None:
    """Same body, same answer; another body is refused."""
    body = {"tenantId": "twice", "tenant": {"displayName": "Twice"}}
    first = await platform.admin.call("POST", "/tenants", body, Idempotency_Key="once-1")
    second = await platform.admin.call("POST", "/tenants", body, Idempotency_Key="once-1")
    assert first.ok()["uid"] == second.ok()["uid"]
    other = await platform.admin.call("POST", "/tenants", body | {"tenantId": "other"}, Idempotency_Key="once-1")
    assert other.body["error"]["status"] == "FAILED_PRECONDITION"
    assert (await platform.admin.call("GET", "/tenants/other")).status == 404


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
async def test_without_a_good_token_nothing_is_told(platform: World, token: str) -> None:
    """UNAUTHENTICATED, whether the thing exists or not."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for path in (f"/{DEV}", "/tenants/none", "/users"):
        assert (await platform.nobody.call("GET", path, **headers)).status == 401


async def test_lists_are_paged(platform: World) -> None:
    """Pages of one bring every tenant once; a token of another query is refused."""
    seen: list[str] = []
    token = ""
    while True:
        page = await platform.admin.get(f"/tenants?pageSize=1&pageToken={token}")
        seen += names(page)
        token = page.get("nextPageToken", "")
        if not token:
            break
        forged = await platform.admin.call("GET", f"/users?pageToken={token}")
        assert forged.status == 400
    assert len(seen) == len(set(seen)) >= 2
