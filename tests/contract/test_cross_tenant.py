"""What another tenant has and what nobody has: the same answer to the byte, for the same work, on every call of the API."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from libs.pg import Database
from libs.rpc import Caller
from services.gateway.identity.authenticator import Authenticator
from tests.contract.calls import Example, examples
from tests.contract.edge import PASSWORD, Edge
from tests.kit.rest import User

# Parts of names that exist, and what takes their place in names that do not; of one length, so that sizes can be compared too.
MISSING = {"acme": "acmf", "local": "locam", "dev": "dew", "shop": "shoq", "ci": "cj", "deploy": "deploz"}
_VARY = {"kubegems-request-id", "kubegems-trace-id", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "date", "server"}


@dataclass
class World:
    """Tenant acme with one of each thing, and somebody of tenant globex."""

    eve: User
    job: str


@pytest.fixture(scope="module")
async def world(edge: Edge) -> World:
    """Both tenants."""
    admin = edge.admin
    for user in ("dev", "eve"):
        await admin.post("/users", {"userId": user, "initialPassword": PASSWORD})
    await admin.post("/clusters", {"clusterId": "local"})
    for tenant in ("acme", "globex"):
        await admin.post("/tenants", {"tenantId": tenant})
        await admin.post(f"/tenants/{tenant}/projects", {"projectId": "shop"})
    await admin.put("/tenants/acme/quotas/local", {"hard": {"limits.cpu": "20"}})
    made = {"cluster": "clusters/local", "quota": {"limits.cpu": "1"}}
    shop = "/tenants/acme/projects/shop"
    await admin.post(f"{shop}/environments", {"environmentId": "dev", "environment": made})
    for place in ("/tenants/acme", shop, f"{shop}/environments/dev"):
        await admin.put(f"{place}/members/dev", {"role": {"/tenants/acme": "MEMBER", shop: "DEV"}.get(place, "OPERATOR")})
    for parent in ("/tenants/acme", shop):
        await admin.post(f"{parent}/serviceAccounts", {"serviceAccountId": "ci"})
        await admin.post(f"{parent}/serviceAccounts/ci/apiKeys", {"apiKeyId": "deploy"})
    await admin.put("/tenants/globex/members/eve", {"role": "ADMIN"})
    job = await admin.post("/jobs", {"job": {"kind": "environment-usage-report", "target": f"{shop[1:]}/environments/dev"}})
    eve = await edge.nobody.sign_in("eve", PASSWORD)
    await eve.get("/tenants/globex")  # her rights are known from now on
    return World(eve, job["name"].split("/")[1])


def _gone(text: str) -> str:
    """A text with every name replaced by one that does not exist."""
    for there, missing in MISSING.items():
        for before in ("/", '"'):
            text = text.replace(f"{before}{there}", f"{before}{missing}")
    return text


async def _asked(user: User, example: Example, *, missing: bool) -> tuple[int, dict[str, str], str, int]:
    """Status, headers that say something, body without ids, and how many transactions it took in the task that serves it.

    Those that only tell who calls do not count: they are needed when a change was heard of since the last call, whatever is asked.
    """
    path = _gone(example.path) if missing else example.path
    body = json.loads(_gone(json.dumps(example.body))) if missing else example.body
    began, identified = Database.begin, Authenticator.used
    count = 0

    async def counted(self: Database, **options: Any) -> Any:
        nonlocal count
        task = asyncio.current_task()
        count += task is not None and str(getattr(task.get_coro(), "__qualname__", "")).startswith("RequestHandler.")
        return await began(self, **options)

    def known(self: Authenticator, caller: Caller, address: str) -> None:
        nonlocal count
        count = 0
        identified(self, caller, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "begin", counted)
        patch.setattr(Authenticator, "used", known)
        answer = await user.call(example.method, "/" + path, body)
    headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in _VARY}
    told = answer.body
    if isinstance(told, dict) and "error" in told:
        told["error"]["details"] = [d for d in told["error"]["details"] if not d["@type"].endswith("RequestInfo")]
    text = json.dumps(told)
    return answer.status, headers, text if missing else _gone(text), count


_PLACES = ("tenants/acme", "clusters/local", "users/dev", "jobs/")
_NAMED = [e for e in examples() if not e.streams and any(f"/{part}" in e.path for part in _PLACES)]


@pytest.mark.parametrize("example", _NAMED, ids=lambda example: f"{example.name} {example.path}")
async def test_hidden_and_missing_are_the_same(world: World, example: Example) -> None:
    """Status, headers, words and size; and the database is asked as often, so that time cannot tell them apart either."""
    if "newPassword" in (example.body or {}):
        example.body["newPassword"] = "another correct horse"
    there = Example(example.name, example.method, example.path.replace("jobs/job", f"jobs/{world.job}"), example.body, streams=False)
    hidden = await _asked(world.eve, there, missing=False)
    missing = await _asked(world.eve, example, missing=True)
    assert hidden[0] in (403, 404), hidden
    if world.job in there.path:
        hidden = (*hidden[:2], hidden[2].replace(world.job, example.path.split("jobs/")[1].split(":")[0]), hidden[3])
        for found in (hidden, missing):
            found[1].pop("content-length")
    assert hidden == missing


async def test_what_is_there_is_there(edge: Edge, world: World) -> None:
    """The control: the admin finds what is hidden, by asking the database, and does not find what is missing."""
    tenant = next(e for e in _NAMED if e.name == "TenantService.GetTenant")
    assert [(await _asked(edge.admin, tenant, missing=missing))[::3] for missing in (False, True)] == [(200, 1), (404, 1)]
    for example in _NAMED:
        if (
            example.method == "GET"
            and "jobs/" not in example.path
            and "joinTokens/" not in example.path
            and "sessions/" not in example.path
        ):
            if "users/dev/" in example.path or example.name.startswith("ClusterService.Diff"):
                continue
            assert (await edge.admin.call("GET", "/" + example.path)).status == 200, example.path
            assert (await edge.admin.call("GET", "/" + _gone(example.path))).status in (200, 404), example.path
