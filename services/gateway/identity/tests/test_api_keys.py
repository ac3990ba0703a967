"""API keys over a real PostgreSQL: what they give, what ends them, what is kept of them."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kubegems.identity.v1 import access_service_pb2, session_service_pb2, user_pb2, user_service_pb2
from kubegems.identity.v1 import api_key_service_pb2 as pb
from libs.clock import new_id
from libs.faults import AlreadyExists, Fault, Invalid, NotFound, PermissionDenied, Precondition, Unauthenticated, Unavailable
from services.gateway.identity import api_keys_store
from services.gateway.identity.api_key_domain import KeyText
from services.gateway.identity.narrowed import KeyRights
from services.gateway.identity.tests.conftest import WORKER, House
from services.gateway.identity.tests.test_canary import _tables
from tests.kit.eventually import eventually, timescale


def _me() -> user_service_pb2.GetUserRequest:
    """A new one each time: the pipeline puts the caller's name into it."""
    return user_service_pb2.GetUserRequest(name="users/me")


async def _refused(house: House, key: str) -> bool:
    try:
        await house.call("UserService/GetUser", _me(), key)
    except Unauthenticated:
        return True
    return False


async def _create(house: House, token: str, **fields: Any) -> pb.CreateApiKeyResponse:
    request = pb.CreateApiKeyRequest(**{"parent": "users/me", "api_key_id": f"k{new_id().hex[-12:]}"} | fields)
    reply: pb.CreateApiKeyResponse = await house.call("ApiKeyService/CreateApiKey", request, token)
    return reply


async def test_a_key_acts_as_its_owner_and_is_shown_once(house: House) -> None:
    """It signs its owner in; afterwards neither get nor list shows it; what it was used for last shows."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token
    made = await _create(house, token, api_key_id="deploy", api_key={"display_name": "Deploys"})
    assert made.api_key.name == f"users/{name}/apiKeys/deploy"
    assert (await house.call("UserService/GetUser", _me(), made.key)).name == f"users/{name}"
    await house.identity.key_check.flush()
    got = await house.call("ApiKeyService/GetApiKey", pb.GetApiKeyRequest(name="users/me/apiKeys/deploy"), token)
    assert (got.display_name, got.last_use_address, got.state) == ("Deploys", "192.0.2.7", 1)
    assert got.last_use_time.seconds > got.create_time.seconds - 60
    listed = await house.call("ApiKeyService/ListApiKeys", pb.ListApiKeysRequest(parent="users/me"), token)
    assert [k.name for k in listed.api_keys] == [got.name]
    assert made.key not in f"{got}{listed}"
    assert 89 < (got.expire_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds() / 86400 < 91


async def test_the_key_stands_in_the_audit_log(house: House) -> None:
    """The actor is the owner, the session the key's name and uid; the secret stands nowhere."""
    name = await house.user()
    made = await _create(house, (await house.sign_in(name)).access_token, api_key_id="audited")
    await house.call(
        "UserService/UpdateUser", user_service_pb2.UpdateUserRequest(user=user_pb2.User(name="users/me", display_name="By key")), made.key
    )
    async with house.database.transaction() as tx:
        row = await tx.row("SELECT actor, session FROM audit.events WHERE session LIKE 'apiKeys:audited:%'")
    assert row is not None
    assert (row["actor"], row["session"]) == (f"users/{name}", f"apiKeys:audited:{made.api_key.uid}")


async def test_secrets_are_kept_nowhere(house: House, capfd: pytest.CaptureFixture[str]) -> None:
    """No table holds a key's secret, in clear or in base64 of a row; the owner's name is found by the same scan."""
    name = await house.user()
    made = await _create(house, (await house.sign_in(name)).access_token)
    assert not await _refused(house, made.key)
    assert await _refused(house, made.key[:-1] + ("A" if made.key[-1] != "A" else "B"))
    await house.auditor.flush()
    await house.identity.key_check.flush()
    everywhere = "\n".join([await _tables(house), *capfd.readouterr()])
    assert name in everywhere, "the control"
    secret = made.key.partition(".")[2]
    assert secret not in everywhere
    assert made.key not in everywhere


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1],
        lambda key: key[:40],
        lambda key: key + "x",
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: KeyText.new(new_id()).text,
        lambda key: key.upper(),
        lambda key: "kgk_",
        lambda key: key.replace("kgk_", ""),
    ],
)
async def test_wrong_keys_are_refused_alike(house: House, spoil: Any) -> None:
    """Truncated, changed, unknown, in other letters: NOT_SIGNED_IN in the same words."""
    key = await house.key(await house.admin())
    with pytest.raises(Unauthenticated) as refused:
        await house.call("UserService/GetUser", _me(), spoil(key))
    assert (refused.value.reason, "key" in refused.value.message) == ("NOT_SIGNED_IN", False)


async def test_an_unknown_id_costs_what_a_wrong_secret_does(house: House) -> None:
    """One read and one comparison each: the medians of many differ by less than their own spread allows."""
    key = await house.key(await house.admin())
    assert not await _refused(house, key)  # it is in use, and remembered
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    check, times = house.identity.key_check, {"unknown": [], "wrong": []}  # type: ignore[var-annotated] # lists of seconds
    for _ in range(150):
        for kind, text in (("unknown", KeyText.new(new_id()).text), ("wrong", wrong)):
            started = time.perf_counter()
            assert await check.verify(text) is None
            times[kind].append(time.perf_counter() - started)
    unknown, other = statistics.median(times["unknown"]), statistics.median(times["wrong"])
    assert abs(unknown - other) < 0.3 * max(unknown, other), (unknown, other)


async def test_deleting_a_key_ends_it_within_a_second(house: House) -> None:
    """Calls, its kubeconfig tokens, and streams watched for it: all end; the owner's session goes on."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token
    made = await _create(house, token, api_key_id="gone")
    caller = await house.identity.authenticator.authenticate(house.open("UserService/GetUser", credential=made.key))
    cluster = str(new_id())
    kubeconfig = house.identity.authenticator.kubeconfig_token(caller, cluster).token
    assert (await house.identity.authenticator.kubernetes(kubeconfig, cluster)).session == caller.session
    watch = access_service_pb2.WatchGrantsRequest(username=name, session=caller.session)
    call = house.open("AccessService/WatchGrants", peer=WORKER)
    async with aclosing(house.pipeline.stream(call, watch)) as stream:
        first = await anext(stream)
        assert (first.kind, list(first.audiences)) == (access_service_pb2.WatchGrantsResponse.SNAPSHOT, []), "inboxes are people's"
        await house.call("ApiKeyService/DeleteApiKey", pb.DeleteApiKeyRequest(name="users/me/apiKeys/gone"), token)
        async with asyncio.timeout(1 * timescale()):
            while (await anext(stream)).kind != access_service_pb2.WatchGrantsResponse.ENDED:
                pass
    await eventually(lambda: _refused(house, made.key), within=1)
    with pytest.raises(Unauthenticated):
        await house.identity.authenticator.still(caller)
    with pytest.raises(Unauthenticated):
        await house.identity.authenticator.kubernetes(kubeconfig, cluster)
    assert (await house.call("UserService/GetUser", _me(), token)).name == f"users/{name}"
    with pytest.raises(NotFound):
        await house.call("ApiKeyService/GetApiKey", pb.GetApiKeyRequest(name="users/me/apiKeys/gone"), token)


@pytest.mark.parametrize(("permission", "seen"), [("jobs.jobs.get", [""]), ("identity.users.get", [])])
async def test_a_keys_stream_shows_jobs_only_where_the_key_may_read_them(house: House, permission: str, seen: list[str]) -> None:
    """A platform admin's key that reads jobs alone sees those of the whole platform, one that does not sees none."""
    key = await house.key(await house.admin(), permissions=[permission])
    caller = await house.identity.authenticator.authenticate(house.open("UserService/GetUser", credential=key))
    watch = access_service_pb2.WatchGrantsRequest(username=caller.id, session=caller.session)
    async with aclosing(house.pipeline.stream(house.open("AccessService/WatchGrants", peer=WORKER), watch)) as stream:
        first = await anext(stream)
    assert (first.everything, list(first.scopes), list(first.job_scopes)) == (False, [], seen)


async def test_a_disabled_owner_ends_its_keys_and_a_past_time_too(house: House) -> None:
    """Within a second; enabling the owner brings a key back, its end does not come back."""
    name = await house.user()
    key = await house.key((await house.sign_in(name)).access_token)
    assert not await _refused(house, key)
    await house.call("UserService/DisableUser", user_service_pb2.DisableUserRequest(name=f"users/{name}"), await house.admin())
    await eventually(lambda: _refused(house, key), within=1)
    await house.call("UserService/EnableUser", user_service_pb2.EnableUserRequest(name=f"users/{name}"), await house.admin())

    async def accepted() -> bool:
        return not await _refused(house, key)

    await eventually(accepted, within=1)
    await house.sql("UPDATE identity.api_keys SET expires = now() - interval '1 second' WHERE user_uid = $1", await house.uid(name))
    await eventually(lambda: _refused(house, key), within=2)


async def test_a_key_loses_with_its_owner_at_once(house: House) -> None:
    """A membership taken away is gone from the key's rights too, and from its stream of grants."""
    name, tenant = await house.user(), await house.tenant()
    await house.member(name, "admin", tenant)
    key = await house.key((await house.sign_in(name)).access_token, scope=f"tenants/{tenant}")

    async def held() -> bool:
        caller = await house.identity.authenticator.authenticate(house.open("UserService/GetUser", credential=key))
        assert isinstance(caller.rights, KeyRights)
        return caller.allows("tenancy.projects.create", f"tenants/{tenant}")

    assert await held()

    async def lost() -> bool:
        return not await held()

    await house.sql("DELETE FROM tenancy.members WHERE tenant = $1", tenant)
    await eventually(lost, within=1)


async def test_a_key_that_only_reads_changes_nothing(house: House) -> None:
    """Reading is as the owner; writing is denied, and a key makes no key, whatever it gives."""
    admin = await house.admin()
    reader, writer = await house.key(admin, read_only=True), await house.key(admin)
    assert (await house.call("UserService/ListUsers", user_service_pb2.ListUsersRequest(), reader)).users
    update = user_service_pb2.UpdateUserRequest(user=user_pb2.User(name="users/me", display_name="By a key"))
    with pytest.raises(PermissionDenied):
        await house.call("UserService/UpdateUser", update, reader)
    await house.call("UserService/UpdateUser", update, writer)
    for key in (reader, writer):
        with pytest.raises(PermissionDenied):
            await _create(house, key)
    reset = user_service_pb2.ResetPasswordRequest(name="users/admin", new_password="a new password")
    with pytest.raises(PermissionDenied):
        await house.call("UserService/ResetPassword", reset, writer)


async def test_a_key_with_a_list_gives_what_is_listed(house: House) -> None:
    """And a key that may make users cannot make an admin: that is another permission."""
    key = await house.key(await house.admin(), permissions=["identity.users.create"])
    create = user_service_pb2.CreateUserRequest(user_id=f"u{new_id().hex[-12:]}", initial_password="correct horse battery")
    await house.call("UserService/CreateUser", create, key)
    with pytest.raises(PermissionDenied):
        await house.call("UserService/ListUsers", user_service_pb2.ListUsersRequest(), key)
    create = user_service_pb2.CreateUserRequest(
        user_id=f"u{new_id().hex[-12:]}", initial_password="correct horse battery", user=user_pb2.User(platform_role=user_pb2.User.ADMIN)
    )
    with pytest.raises(PermissionDenied) as refused:
        await house.call("UserService/CreateUser", create, key)
    assert refused.value.metadata["permission"] == "identity.users.setRole"


async def test_what_is_not_held_cannot_be_put_into_a_key(house: House) -> None:
    """Permissions of others, those that no key gives, unknown ones, and places that the owner does not know."""
    name, tenant = await house.user(), await house.tenant()
    await house.member(name, "dev", tenant, "shop")
    token = (await house.sign_in(name)).access_token
    for permissions in (["identity.users.create"], ["tenancy.projects.create"], ["identity.apiKeys.create"]):
        with pytest.raises(PermissionDenied) as refused:
            await house.key(token, permissions=permissions)
        assert refused.value.reason == "ESCALATION"
    with pytest.raises(Invalid):
        await house.key(token, permissions=["no.such.thing"])
    with pytest.raises(PermissionDenied):
        await house.key(token, permissions=["apps.manifests.update"], read_only=True)
    with pytest.raises(NotFound):
        await house.key(token, scope=f"tenants/{await house.tenant()}")
    assert await house.key(token, permissions=["apps.manifests.update"], scope=f"tenants/{tenant}/projects/shop")


async def test_nobody_makes_another_users_key(house: House) -> None:
    """Not a stranger, who learns nothing, and not the platform admin; who may take one back."""
    name = await house.user()
    made = await _create(house, (await house.sign_in(name)).access_token, api_key_id="mine")
    stranger = (await house.sign_in(await house.user())).access_token
    with pytest.raises(NotFound):
        await _create(house, stranger, parent=f"users/{name}")
    with pytest.raises(NotFound):
        await house.call("ApiKeyService/DeleteApiKey", pb.DeleteApiKeyRequest(name=made.api_key.name), stranger)
    admin = await house.admin()
    with pytest.raises(PermissionDenied) as refused:
        await _create(house, admin, parent=f"users/{name}")
    assert refused.value.reason == "ESCALATION"
    await house.call("ApiKeyService/DeleteApiKey", pb.DeleteApiKeyRequest(name=made.api_key.name), admin)
    await eventually(lambda: _refused(house, made.key), within=1)


async def test_names_ends_and_numbers_are_bounded(house: House) -> None:
    """One key of a name, an end within a year and ahead, 50 keys of one owner."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token
    await _create(house, token, api_key_id="one")
    with pytest.raises(AlreadyExists):
        await _create(house, token, api_key_id="one")
    for days in (-1, 366):
        end = Timestamp()
        end.FromDatetime(datetime.now(UTC) + timedelta(days=days))
        with pytest.raises(Invalid):
            await _create(house, token, api_key={"expire_time": end})
    await house.sql(
        "INSERT INTO identity.api_keys (id, user_uid, key, hash, created, expires)"
        " SELECT gen_random_uuid(), $1, 'bulk-' || n, '', now(), now() + interval '1 day' FROM generate_series(1, 49) n",
        await house.uid(name),
    )
    with pytest.raises(Precondition) as refused:
        await _create(house, token)
    assert refused.value.reason == "TOO_MANY_API_KEYS"
    page = await house.call("ApiKeyService/ListApiKeys", pb.ListApiKeysRequest(parent="users/me", page_size=30), token)
    rest = await house.call(
        "ApiKeyService/ListApiKeys", pb.ListApiKeysRequest(parent="users/me", page_size=30, page_token=page.next_page_token), token
    )
    assert len({k.name for k in [*page.api_keys, *rest.api_keys]}) == 50


async def test_a_key_cannot_sign_out_a_session_that_it_has_not(house: House) -> None:
    """`sessions/current` of a key is no session: nothing ends by mistake."""
    key = await house.key(await house.admin())
    with pytest.raises(Fault) as refused:
        await house.call("SessionService/DeleteSession", session_service_pb2.DeleteSessionRequest(name="users/me/sessions/current"), key)
    assert refused.value.code.name in ("NOT_FOUND", "INVALID_ARGUMENT")


async def test_last_uses_wait_while_postgresql_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush that fails keeps them for the next one."""
    name = await house.user()
    key = await house.key((await house.sign_in(name)).access_token)
    assert not await _refused(house, key)

    async def away(*_: Any) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(api_keys_store, "keep_uses", away)
        await house.identity.key_check.flush()
    await house.identity.key_check.flush()
    async with house.database.transaction() as tx:
        assert await tx.value("SELECT last_use FROM identity.api_keys WHERE user_uid = $1", await house.uid(name))
