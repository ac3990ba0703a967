"""No secret is ever in logs, audit or errors; a planted canary proves that the scan sees."""

from __future__ import annotations

import pytest

from tests.e2e.world import PASSWORD, World
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
CANARY = "canary-7f3a"
SERVICES = ("gateway", "msgbus", "worker", "agent", "controller")


async def test_passwords_and_tokens_leave_no_trace(platform: World, stack: Platform) -> None:
    """A harmless canary in a name is found by the same scan that finds no password, token or refresh token."""
    secret = "s3cret-" + "Kq9" * 5
    await platform.admin.post("/users", {"userId": CANARY, "user": {"displayName": CANARY}, "initialPassword": secret})
    refused = await platform.nobody.call("POST", "/sessions", {"username": CANARY, "password": secret + "wrong"})
    assert refused.status == 401
    assert secret not in str(refused.body)
    session = (await platform.nobody.call("POST", "/sessions", {"username": CANARY, "password": secret})).ok()
    bad = await platform.admin.call("POST", "/users", {"userId": "NOT OK", "initialPassword": secret, "nope": secret})
    assert bad.status == 400
    assert secret not in str(bad.body)
    audit = str(await platform.admin.get("/audit/events?pageSize=500"))
    assert CANARY in audit
    logs = "".join(stack.log(service) for service in SERVICES)
    assert "service.started" in logs
    for hidden in (secret, PASSWORD, session["accessToken"], session["refreshToken"], platform.admin.token):
        assert hidden not in audit
        assert hidden not in logs
