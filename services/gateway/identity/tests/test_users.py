"""Users through the whole pipeline: making, changing, shutting out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from kubegems.identity.v1 import user_pb2
from kubegems.identity.v1 import user_service_pb2 as pb
from libs.faults import AlreadyExists, Fault, Invalid, NotFound, PermissionDenied, Precondition, Stale, Unauthenticated
from services.gateway.identity.tests.conftest import PASSWORD, House
from tests.kit.eventually import eventually

ADMIN, AUDITOR, USER = user_pb2.User.ADMIN, user_pb2.User.AUDITOR, user_pb2.User.USER


async def _get(house: House, name: str, token: str) -> user_pb2.User:
    found: user_pb2.User = await house.call("UserService/GetUser", pb.GetUserRequest(name=f"users/{name}"), token)
    return found


async def _update(house: House, token: str, *paths: str, **fields: Any) -> user_pb2.User:
    request = pb.UpdateUserRequest(user=user_pb2.User(**fields), update_mask=FieldMask(paths=paths))
    found: user_pb2.User = await house.call("UserService/UpdateUser", request, token)
    return found


async def _ended(house: House, token: str) -> bool:
    try:
        await house.call("UserService/GetUser", pb.GetUserRequest(name="users/me"), token)
    except Unauthenticated:
        return True
    return False


async def test_a_user_is_made_once(house: House) -> None:
    """The second is ALREADY_EXISTS; so is the name of a user that was removed."""
    admin, name = await house.admin(), await house.user()
    request = pb.CreateUserRequest(user_id=name, initial_password=PASSWORD)
    with pytest.raises(AlreadyExists):
        await house.call("UserService/CreateUser", request, admin)
    await house.sql("DELETE FROM identity.users WHERE username = $1", name)
    with pytest.raises(AlreadyExists):
        await house.call("UserService/CreateUser", request, admin)


@pytest.mark.parametrize(
    ("user_id", "password", "field"),
    [
        ("me", PASSWORD, "user_id"),
        ("Upper", PASSWORD, "user_id"),
        ("sl/ash", PASSWORD, "user_id"),
        ("", PASSWORD, "user_id"),
        ("shorty", "short", "initial_password"),
        ("longname-same", "longname-same", "initial_password"),
    ],
)
async def test_bad_names_and_passwords_are_refused_with_their_field(house: House, user_id: str, password: str, field: str) -> None:
    """INVALID_ARGUMENT naming the field, and never the password."""
    with pytest.raises(Invalid) as caught:
        await house.call("UserService/CreateUser", pb.CreateUserRequest(user_id=user_id, initial_password=password), await house.admin())
    assert [v.field for v in caught.value.violations] == [field]
    if field == "initial_password":
        assert password not in str(caught.value.violations) + caught.value.message


async def test_making_the_same_user_again_with_its_request_id_is_harmless(house: House) -> None:
    """Same request id and body: the same user; another body: FAILED_PRECONDITION."""
    admin = await house.admin()
    request = pb.CreateUserRequest(user_id="once", initial_password=PASSWORD, request_id="r-1")
    first = await house.call("UserService/CreateUser", request, admin)
    again = await house.call("UserService/CreateUser", request, admin)
    assert first.uid == again.uid
    with pytest.raises(Precondition):
        await house.call(
            "UserService/CreateUser", pb.CreateUserRequest(user_id="twice", initial_password=PASSWORD, request_id="r-1"), admin
        )


async def test_users_see_themselves_and_nobody_else(house: House) -> None:
    """Another user looks like one that never was; the auditor and the admin see both."""
    me, other = await house.user(), await house.user()
    token = (await house.sign_in(me)).access_token
    assert (await _get(house, "me", token)).name == f"users/{me}"
    told = []
    for name in (other, "never-was"):
        with pytest.raises(NotFound) as caught:
            await _get(house, name, token)
        told.append(str((caught.value.reason, caught.value.message, caught.value.metadata)).replace(name, ""))
    assert told[0] == told[1]
    auditor = (await house.sign_in(await house.user("AUDITOR"))).access_token
    assert (await _get(house, other, auditor)).name == f"users/{other}"
    with pytest.raises(PermissionDenied):
        await house.call("UserService/ListUsers", pb.ListUsersRequest(), token)


async def test_an_update_needs_the_current_etag_if_any(house: House) -> None:
    """A stale etag is ABORTED and changes nothing; none means whatever is there."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token
    old = await _get(house, name, token)
    new = await _update(house, token, name=old.name, display_name="New", etag=old.etag)
    assert new.display_name == "New"
    assert new.etag != old.etag
    with pytest.raises(Stale):
        await _update(house, token, name=old.name, display_name="Lost", etag=old.etag)
    assert (await _update(house, token, "email", name=old.name, email="a@b.c")).display_name == "New"
    assert (await _get(house, name, token)).email == "a@b.c"


async def test_a_mask_clears_what_it_names_and_refuses_what_cannot_change(house: House) -> None:
    """An empty value under the mask clears; an unknown or fixed field is INVALID_ARGUMENT naming it."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token
    assert (await _update(house, token, "display_name", name=f"users/{name}")).display_name == ""
    for path in ("uid", "state", "password"):
        with pytest.raises(Invalid, match=path):
            await _update(house, token, path, name=f"users/{name}")


async def test_nobody_raises_itself(house: House) -> None:
    """A user and an auditor may not set the platform role, their own or another's; an admin may."""
    for role in ("USER", "AUDITOR"):
        name = await house.user(role)
        token = (await house.sign_in(name)).access_token
        with pytest.raises(PermissionDenied):
            await _update(house, token, name=f"users/{name}", platform_role=ADMIN)
        with pytest.raises(Fault):
            await _update(house, token, name="users/admin", platform_role=USER)
    assert (await _update(house, await house.admin(), name=f"users/{name}", platform_role=ADMIN)).platform_role == ADMIN
    assert (await _update(house, await house.admin(), name=f"users/{name}", platform_role=USER)).platform_role == USER


async def test_a_new_role_counts_within_a_second(house: House) -> None:
    """The same token may more, and then less again."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token

    async def lists() -> bool:
        try:
            await house.call("UserService/ListUsers", pb.ListUsersRequest(page_size=1), token)
        except PermissionDenied:
            return False
        return True

    async def lists_not() -> bool:
        return not await lists()

    assert not await lists()
    admin = await house.admin()
    await _update(house, admin, name=f"users/{name}", platform_role=AUDITOR)
    await eventually(lists, within=1, what="role gained")
    await _update(house, admin, name=f"users/{name}", platform_role=USER)
    await eventually(lists_not, within=1, what="role lost")


async def test_the_last_admin_can_neither_step_down_nor_be_disabled(house: House) -> None:
    """FAILED_PRECONDITION while there is one; a second admin sets it free; a disabled one does not count."""
    admin = await house.admin()
    for attempt in (
        house.call("UserService/DisableUser", pb.DisableUserRequest(name="users/admin"), admin),
        _update(house, admin, name="users/admin", platform_role=AUDITOR),
        _update(house, admin, "platform_role", name="users/admin"),
    ):
        with pytest.raises(Precondition) as caught:
            await attempt
        assert caught.value.reason == "LAST_PLATFORM_ADMIN"
    second = await house.user("ADMIN")
    disabled = await house.call("UserService/DisableUser", pb.DisableUserRequest(name=f"users/{second}"), admin)
    assert disabled.state == user_pb2.User.DISABLED
    with pytest.raises(Precondition):
        await house.call("UserService/DisableUser", pb.DisableUserRequest(name="users/admin"), admin)


async def test_two_admins_cannot_disable_each_other_at_once(house: House) -> None:
    """One of them stays, whoever comes first."""
    first, second = await house.user("ADMIN"), await house.user("ADMIN")
    tokens = [(await house.sign_in(name)).access_token for name in (first, second)]
    await house.sql("UPDATE identity.users SET state = 'DISABLED' WHERE username = 'admin'")
    try:
        results = await asyncio.gather(
            house.call("UserService/DisableUser", pb.DisableUserRequest(name=f"users/{second}"), tokens[0]),
            house.call("UserService/DisableUser", pb.DisableUserRequest(name=f"users/{first}"), tokens[1]),
            return_exceptions=True,
        )
        assert sum(isinstance(r, user_pb2.User) for r in results) == 1, results
    finally:
        await house.sql("UPDATE identity.users SET state = 'ACTIVE' WHERE username = 'admin'")
        await house.sql("UPDATE identity.users SET platform_role = 'USER' WHERE username IN ($1, $2)", first, second)


async def test_disabling_a_user_ends_its_tokens_within_a_second(house: House) -> None:
    """Access is refused, signing in too; enabling lets it sign in again, with new tokens only."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token
    assert not await _ended(house, token)
    admin = await house.admin()
    await house.call("UserService/DisableUser", pb.DisableUserRequest(name=f"users/{name}"), admin)
    await eventually(lambda: _ended(house, token), within=1, what="user disabled")
    with pytest.raises(Unauthenticated):
        await house.sign_in(name)
    await house.call("UserService/EnableUser", pb.EnableUserRequest(name=f"users/{name}"), admin)
    assert (await house.sign_in(name)).access_token
    assert await _ended(house, token)


async def test_changing_the_password_ends_the_other_sessions(house: House) -> None:
    """The old password must be right; the session that changed it goes on."""
    name = await house.user()
    mine, other = await house.sign_in(name), await house.sign_in(name)
    change = pb.ChangePasswordRequest(name="users/me", old_password="wrong wrong wrong", new_password="another password")
    with pytest.raises(Unauthenticated):
        await house.call("UserService/ChangePassword", change, mine.access_token)
    change.old_password = PASSWORD
    await house.call("UserService/ChangePassword", change, mine.access_token)
    await eventually(lambda: _ended(house, other.access_token), within=1)
    assert not await _ended(house, mine.access_token)
    with pytest.raises(Unauthenticated):
        await house.sign_in(name)
    assert (await house.sign_in(name, "another password")).access_token


async def test_resetting_a_password_is_for_admins_and_ends_all_sessions(house: House) -> None:
    """Neither the user itself nor the auditor may; afterwards only the new password signs in."""
    name = await house.user()
    token = (await house.sign_in(name)).access_token
    reset = pb.ResetPasswordRequest(name=f"users/{name}", new_password="set by an admin")
    for who in (token, (await house.sign_in(await house.user("AUDITOR"))).access_token):
        with pytest.raises((PermissionDenied, NotFound)):
            await house.call("UserService/ResetPassword", reset, who)
    await house.call("UserService/ResetPassword", reset, await house.admin())
    await eventually(lambda: _ended(house, token), within=1)
    assert (await house.sign_in(name, "set by an admin")).access_token


async def test_users_are_listed_in_pages_filtered_and_ordered(house: House) -> None:
    """Pages meet; filter and order hold; a token of another query, an unknown field and a bad order are refused."""
    admin = await house.admin()
    for n in range(5):
        await house.user(name=f"paged-{n}")
    query: dict[str, Any] = {"filter": 'name:"users/paged-" AND state=ACTIVE', "order_by": "name desc", "page_size": 2}
    found: list[str] = []
    page = pb.ListUsersResponse()
    while not found or page.next_page_token:
        page = await house.call("UserService/ListUsers", pb.ListUsersRequest(**query, page_token=page.next_page_token), admin)
        assert page.total_size == 5
        found += [u.name for u in page.users]
    assert found == [f"users/paged-{n}" for n in (4, 3, 2, 1, 0)]
    first = await house.call("UserService/ListUsers", pb.ListUsersRequest(**query), admin)
    bad = [{"page_token": first.next_page_token}, {"filter": "password_hash:a"}, {"order_by": "password_hash"}, {"filter": "state=GONE"}]
    for wrong in bad:
        with pytest.raises(Invalid):
            await house.call("UserService/ListUsers", pb.ListUsersRequest(**wrong), admin)
    oldest = await house.call("UserService/ListUsers", pb.ListUsersRequest(order_by="create_time", page_size=1), admin)
    assert oldest.users[0].name == "users/admin"
