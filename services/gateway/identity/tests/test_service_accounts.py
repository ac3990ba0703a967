"""Service accounts: whose they are, what they may, and that nobody rises by them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from kubegems.identity.v1 import api_key_service_pb2 as keys_pb
from kubegems.identity.v1 import service_account_pb2, session_service_pb2, user_pb2, user_service_pb2
from kubegems.identity.v1 import service_account_service_pb2 as pb
from libs.clock import new_id
from libs.faults import AlreadyExists, Fault, Invalid, NotFound, PermissionDenied, Stale, Unauthenticated
from services.gateway.identity.tests.conftest import House
from tests.kit.eventually import eventually

Account = service_account_pb2.ServiceAccount


def _me() -> user_service_pb2.GetUserRequest:
    """A new one each time: the pipeline puts the caller's name into it."""
    return user_service_pb2.GetUserRequest(name="users/me")


def _grant(scope: str, role: str) -> service_account_pb2.RoleGrant:
    return service_account_pb2.RoleGrant(scope=scope, role=service_account_pb2.RoleGrant.Role.Value(role))


async def _admin_of(house: House, tenant: str, project: str = "") -> str:
    """A token of a new admin of a tenant or project."""
    name = await house.user()
    await house.member(name, "admin", tenant, project)
    return (await house.sign_in(name)).access_token


async def _create(house: House, token: str, parent: str, *roles: tuple[str, str], name: str = "") -> Any:
    request = pb.CreateServiceAccountRequest(
        parent=parent, service_account_id=name or f"a{new_id().hex[-8:]}",
        service_account=Account(display_name="CI", roles=[_grant(scope, role) for scope, role in roles]),
    )  # fmt: skip
    return await house.call("ServiceAccountService/CreateServiceAccount", request, token)


async def test_an_account_of_a_tenant_works_by_its_keys(house: House) -> None:
    """Its user name says whose it is; its key acts with its roles; in clusters it is that user in its roles' groups."""
    tenant = await house.tenant()
    _, cluster = await house.cluster(tenant)
    await house.environment(tenant, "dev", cluster)
    token, dev = await _admin_of(house, tenant), f"tenants/{tenant}/projects/shop/environments/dev"
    made = await _create(house, token, f"tenants/{tenant}", (f"tenants/{tenant}/projects/shop", "OPS"), (dev, "OPERATOR"), name="ci")
    assert (made.name, made.username) == (f"tenants/{tenant}/serviceAccounts/ci", f"sa.{tenant}.ci")
    key = await house.key(token, made.name)
    assert (await house.call("UserService/GetUser", _me(), key)).name == f"users/sa.{tenant}.ci"
    caller = await house.identity.authenticator.authenticate(house.open("UserService/GetUser", credential=key))
    assert caller.allows("tenancy.environments.create", f"tenants/{tenant}/projects/shop")
    assert not caller.allows("tenancy.projects.create", f"tenants/{tenant}")
    await eventually(lambda: _has_groups(house, caller, cluster, 2), within=1)
    principal = await house.identity.principals.of_caller(caller, str(cluster))
    assert principal.user == f"gems:user:sa.{tenant}.ci"
    assert principal.groups == (f"gems:environment:{tenant}/shop/dev:operator", f"gems:project:{tenant}/shop:ops")
    listed = await house.call("ServiceAccountService/ListServiceAccounts", pb.ListServiceAccountsRequest(parent=f"tenants/{tenant}"), token)
    assert [a.name for a in listed.service_accounts] == [made.name]


async def _has_groups(house: House, caller: Any, cluster: Any, number: int) -> bool:
    return len((await house.identity.principals.of_caller(caller, str(cluster))).groups) == number


async def test_a_scoped_key_brings_no_foreign_groups(house: House) -> None:
    """A key for one project acts in clusters without the groups of the owner's other memberships."""
    tenant, other, name = await house.tenant(), await house.tenant(), await house.user()
    _, cluster = await house.cluster(tenant)
    for place in (tenant, other):
        await house.environment(place, "dev", cluster)
        await house.member(name, "ops", place, "shop")
    key = await house.key((await house.sign_in(name)).access_token, scope=f"tenants/{tenant}/projects/shop")
    caller = await house.identity.authenticator.authenticate(house.open("UserService/GetUser", credential=key))
    await eventually(lambda: _has_groups(house, caller, cluster, 1), within=1)
    assert (await house.identity.principals.of_caller(caller, str(cluster))).groups == (f"gems:project:{tenant}/shop:ops",)


async def test_other_tenants_admins_see_and_touch_nothing(house: House) -> None:
    """Get, list, update, delete, and keys: absent for another tenant's admin, and for the own tenant's mere member."""
    tenant, other = await house.tenant(), await house.tenant()
    token = await _admin_of(house, tenant)
    made = await _create(house, token, f"tenants/{tenant}", (f"tenants/{tenant}", "MEMBER"))
    member = await house.user()
    await house.member(member, "member", tenant)
    for foreign in (await _admin_of(house, other), (await house.sign_in(member)).access_token):
        for method, request in (
            ("ServiceAccountService/GetServiceAccount", pb.GetServiceAccountRequest(name=made.name)),
            ("ServiceAccountService/UpdateServiceAccount", pb.UpdateServiceAccountRequest(service_account=Account(name=made.name))),
            ("ServiceAccountService/DeleteServiceAccount", pb.DeleteServiceAccountRequest(name=made.name)),
            ("ApiKeyService/CreateApiKey", keys_pb.CreateApiKeyRequest(parent=made.name, api_key_id="k")),
            ("ApiKeyService/ListApiKeys", keys_pb.ListApiKeysRequest(parent=made.name)),
        ):
            with pytest.raises((NotFound, PermissionDenied)):
                await house.call(method, request, foreign)
    got = await house.call("ServiceAccountService/GetServiceAccount", pb.GetServiceAccountRequest(name=made.name), token)
    assert got.uid == made.uid, "the control"


async def test_nobody_gives_more_than_is_held(house: House) -> None:
    """Roles above or beside the owner, roles that do not fit, and accounts that hold more than who would use them."""
    tenant = await house.tenant()
    await house.sql("INSERT INTO tenancy.projects (uid, tenant, name) VALUES ($1, $2, 'blog')", new_id(), tenant)
    shop, blog = f"tenants/{tenant}/projects/shop", f"tenants/{tenant}/projects/blog"
    of_shop = await _admin_of(house, tenant, "shop")
    made = await _create(house, of_shop, shop, (shop, "ADMIN"), name="ci")
    assert made.username == f"sa.{tenant}.shop.ci"
    for scope, role in ((f"tenants/{tenant}", "ADMIN"), (blog, "DEV"), ("tenants/other", "MEMBER"), (shop, "OPERATOR"), (shop, "MEMBER")):
        with pytest.raises(Invalid):
            await _create(house, of_shop, shop, (scope, role))
    with pytest.raises((PermissionDenied, NotFound)):
        await _create(house, of_shop, f"tenants/{tenant}")
    # a key that may only keep accounts gives no role that it does not hold itself
    narrow = await house.key(of_shop, permissions=["identity.serviceAccounts.create", "identity.serviceAccounts.update"])
    for call in (
        _create(house, narrow, shop, (shop, "DEV")),
        house.call(
            "ServiceAccountService/UpdateServiceAccount",
            pb.UpdateServiceAccountRequest(service_account=Account(name=made.name, roles=[_grant(shop, "DEV")])), narrow,
        ),
    ):  # fmt: skip
        with pytest.raises(PermissionDenied) as refused:
            await call
        assert refused.value.reason == "ESCALATION"
    # an account's own key rises neither: it makes no key
    key = await house.key(of_shop, made.name)
    with pytest.raises(PermissionDenied):
        await house.key(key, made.name)


async def test_an_account_is_changed_disabled_and_removed(house: House) -> None:
    """Roles are replaced, an old etag is refused, disabling and removing end its keys within a second; its name is burnt."""
    tenant = await house.tenant()
    token, shop = await _admin_of(house, tenant), f"tenants/{tenant}/projects/shop"
    made = await _create(house, token, f"tenants/{tenant}", (shop, "DEV"), name="ci")
    key = await house.key(token, made.name)

    async def update(**fields: Any) -> Any:
        request = pb.UpdateServiceAccountRequest(
            service_account=Account(name=made.name, **fields), update_mask=FieldMask(paths=[f for f in fields if f != "etag"])
        )
        return await house.call("ServiceAccountService/UpdateServiceAccount", request, token)

    changed = await update(roles=[_grant(shop, "TEST")], etag=made.etag)
    assert [(r.scope, r.role) for r in changed.roles if "projects" in r.scope] == [(shop, 5)]
    with pytest.raises(Stale):
        await update(roles=[], etag=made.etag)
    await update(disabled=True)

    async def refused() -> bool:
        try:
            await house.call("UserService/GetUser", _me(), key)
        except Unauthenticated:
            return True
        except NotFound:
            return False  # the row has gone; the key is let in until the gateway hears of it
        return False

    async def accepted() -> bool:
        return not await refused()

    await eventually(refused, within=1)
    await update(disabled=False)
    await eventually(accepted, within=1)
    await house.call("ServiceAccountService/DeleteServiceAccount", pb.DeleteServiceAccountRequest(name=made.name), token)
    await eventually(refused, within=1)
    with pytest.raises(AlreadyExists):
        await _create(house, token, f"tenants/{tenant}", name="ci")


async def test_an_account_goes_with_its_owner(house: House) -> None:
    """A tenant that is gone takes its accounts; one of the same name later starts without them."""
    tenant = await house.tenant()
    made = await _create(house, await _admin_of(house, tenant), f"tenants/{tenant}/projects/shop", name="ci")
    key = await house.key(await house.admin(), made.name)
    await house.sql("DELETE FROM tenancy.members WHERE tenant = $1", tenant)
    await house.sql("DELETE FROM tenancy.projects WHERE tenant = $1", tenant)

    async def refused() -> bool:
        try:
            await house.call("UserService/GetUser", _me(), key)
        except Unauthenticated:
            return True
        return False

    await eventually(refused, within=1)


async def test_people_and_accounts_never_share_a_name_or_a_road(house: House) -> None:
    """No person is named like an account; no account signs in by password, is made admin, or is listed among people."""
    tenant = await house.tenant()
    made = await _create(house, await _admin_of(house, tenant), f"tenants/{tenant}")
    admin = await house.admin()
    with pytest.raises(Invalid):
        await house.user(name=f"sa.{tenant}.other")
    for password in ("!", "", "correct horse battery"):
        with pytest.raises(Fault):
            await house.call(
                "SessionService/CreateSession", session_service_pb2.CreateSessionRequest(username=made.username, password=password)
            )
    name = f"users/{made.username}"
    for method, request in (
        ("UserService/UpdateUser", user_service_pb2.UpdateUserRequest(user=user_pb2.User(name=name, platform_role=user_pb2.User.ADMIN))),
        ("UserService/ResetPassword", user_service_pb2.ResetPasswordRequest(name=name, new_password="a new password")),
        ("ApiKeyService/CreateApiKey", keys_pb.CreateApiKeyRequest(parent=name, api_key_id="k")),
    ):
        with pytest.raises(NotFound):
            await house.call(method, request, admin)
    people = await house.call("UserService/ListUsers", user_service_pb2.ListUsersRequest(page_size=500, filter='state = "ACTIVE"'), admin)
    assert name not in [u.name for u in people.users]
