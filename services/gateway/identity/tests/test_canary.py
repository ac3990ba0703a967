"""Passwords and tokens come back nowhere: not in replies, faults, logs, audit rows, or any table."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import structlog

from kubegems.identity.v1 import session_service_pb2, user_service_pb2
from libs.faults import Fault
from services.gateway.identity.tests.conftest import House

CANARY = "canary-password-7f3a"
SECOND = "canary-password-2b9c"


async def _tables(house: House) -> str:
    """Every row of every table, as text."""
    async with house.database.transaction() as tx:
        names = await tx.rows(
            "SELECT table_schema || '.' || table_name AS name FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
        )
        rows: list[Any] = []
        for name in names:
            rows += await tx.rows(f"SELECT t::text AS row FROM {name['name']} t")
    return "\n".join(str(row["row"]) for row in rows)


async def test_secrets_are_kept_nowhere(house: House, capfd: pytest.CaptureFixture[str]) -> None:
    """A whole life of a user with planted secrets; the same scan finds a planted user name, so it does look."""
    said: list[str] = []
    tokens: list[str] = []
    admin = await house.admin()

    async def call(method: str, request: Any, token: str = "") -> Any:
        with contextlib.suppress(Fault):
            try:
                return await house.call(method, request, token)
            except Fault as fault:
                said.append(f"{fault.message} {fault.metadata} {fault.violations} {fault!r}")
                raise
        return None

    with structlog.testing.capture_logs() as logs:
        create = user_service_pb2.CreateUserRequest(user_id="canary-user", initial_password=CANARY, request_id="canary")
        said.append(str(await call("UserService/CreateUser", create, admin)))
        await call("UserService/CreateUser", create, admin)
        await call("UserService/CreateUser", user_service_pb2.CreateUserRequest(user_id="me", initial_password=CANARY), admin)
        signed_in = await house.sign_in("canary-user", CANARY)
        await call("SessionService/CreateSession", session_service_pb2.CreateSessionRequest(username="canary-user", password=SECOND))
        refresh = session_service_pb2.RefreshSessionRequest(refresh_token=signed_in.refresh_token)
        refreshed = await call("SessionService/RefreshSession", refresh)
        change = user_service_pb2.ChangePasswordRequest(name="users/me", old_password=CANARY, new_password=SECOND)
        await call("UserService/ChangePassword", change, refreshed.access_token)
        reset = user_service_pb2.ResetPasswordRequest(name="users/canary-user", new_password=CANARY)
        await call("UserService/ResetPassword", reset, admin)
        await call("SessionService/RefreshSession", refresh)
        for made in (signed_in, refreshed):
            tokens += [made.access_token, made.refresh_token]
            said.append(str(made.session))
        said.append(str(await call("UserService/ListUsers", user_service_pb2.ListUsersRequest(), admin)))
    await house.auditor.flush()
    everywhere = "\n".join([*said, str(logs), *capfd.readouterr(), await _tables(house)])
    assert "canary-user" in everywhere, "the control"
    assert "CreateSession" in everywhere, "the control: audit rows are among what is scanned"
    for secret in (CANARY, SECOND, *tokens):
        assert secret not in everywhere


async def test_sign_ins_are_in_the_audit_log_with_who_and_whether(house: House) -> None:
    """A success names user and session; a failure is DENIED, names what was tried, and no user as actor."""
    name = await house.user()
    signed_in = await house.sign_in(name)
    with pytest.raises(Fault):
        await house.sign_in(name, "wrong wrong wrong")
    async with house.database.transaction() as tx:
        rows = await tx.rows(
            "SELECT actor, outcome, class, session, address, resources::text AS resources, request::text AS request FROM audit.events"
            " WHERE method = '/kubegems.identity.v1.SessionService/CreateSession' AND request::text LIKE $1 ORDER BY time",
            f"%{name}%",
        )
    good, bad = rows
    assert (good["actor"], good["outcome"], good["class"], good["address"]) == (f"users/{name}", "OK", "SENSITIVE", "192.0.2.7")
    assert signed_in.session.name in good["resources"]
    assert (bad["actor"], bad["outcome"]) == ("", "DENIED")
    assert name in bad["request"]
