"""Members: explicit, cascading downwards, never without an admin."""

from __future__ import annotations

import asyncio

import pytest

from kubegems.tenancy.v1 import member_service_pb2
from libs.faults import Fault
from services.gateway.tenancy.tests.house import House, refused


async def _remove(house: House, scope: str, user: str, by: str = "admin") -> None:
    await house.call("MemberService/DeleteMember", member_service_pb2.DeleteMemberRequest(name=f"{scope}/members/{user}"), by)


async def _place(house: House) -> tuple[str, str]:
    cluster, _ = await house.cluster()
    tenant = await house.tenant(cluster)
    await house.environment(tenant, cluster)
    return tenant, f"tenants/{tenant}/projects/shop/environments/dev"


async def test_joining_below_makes_a_tenant_member(house: House) -> None:
    """An environment's operator is a tenant member by a row of its own, and holds no project role."""
    tenant, env = await _place(house)
    user = await house.user()
    member = await house.member(env, user, "OPERATOR")
    assert (member.name, member.display_name) == (f"{env}/members/{user}", f"{user} of us")
    assert await house.roles(user) == {(tenant, "member"), (f"{tenant}/shop/dev", "operator")}


async def test_joining_below_keeps_a_higher_role(house: House) -> None:
    """A tenant admin who joins a project stays admin."""
    tenant, _ = await _place(house)
    user = await house.user()
    await house.member(f"tenants/{tenant}", user, "ADMIN")
    await house.member(f"tenants/{tenant}/projects/shop", user, "DEV")
    assert await house.roles(user) == {(tenant, "admin"), (f"{tenant}/shop", "dev")}


async def test_removal_takes_everything_below(house: House) -> None:
    """Out of the project means out of its environments; out of the tenant means out of all of it."""
    tenant, env = await _place(house)
    user, other = await house.user(), await house.user()
    for name in (user, other):
        await house.member(env, name, "READER")
        await house.member(f"tenants/{tenant}/projects/shop", name, "TEST")
    await _remove(house, f"tenants/{tenant}/projects/shop", user)
    assert await house.roles(user) == {(tenant, "member")}
    await _remove(house, f"tenants/{tenant}", other)
    assert await house.roles(other) == set()
    with refused("NOT_FOUND"):
        await _remove(house, f"tenants/{tenant}", other)


async def test_the_last_admin_stays(house: House) -> None:
    """Neither removed nor demoted; with a second admin both work."""
    tenant, _ = await _place(house)
    first, second = await house.user(), await house.user()
    await house.member(f"tenants/{tenant}", first, "ADMIN")
    with refused("LAST_ADMIN", f"users/{first}"):
        await _remove(house, f"tenants/{tenant}", first)
    with refused("LAST_ADMIN"):
        await house.member(f"tenants/{tenant}", first, "MEMBER")
    await house.member(f"tenants/{tenant}", second, "ADMIN")
    await house.member(f"tenants/{tenant}", first, "MEMBER")
    with refused("LAST_ADMIN"):
        await _remove(house, f"tenants/{tenant}", second)


async def test_two_admins_cannot_both_go_at_once(house: House) -> None:
    """Of two removals at the same time, one is refused."""
    tenant, _ = await _place(house)
    users = [await house.user(), await house.user()]
    for user in users:
        await house.member(f"tenants/{tenant}", user, "ADMIN")
    results = await asyncio.gather(*(_remove(house, f"tenants/{tenant}", user) for user in users), return_exceptions=True)
    assert sorted(r.reason if isinstance(r, Fault) else "" for r in results) == ["", "LAST_ADMIN"]


@pytest.mark.parametrize(
    ("level", "role"), [("tenant", "OPERATOR"), ("project", "READER"), ("environment", "ADMIN"), ("environment", "MEMBER")]
)
async def test_a_role_must_fit_its_level(house: House, level: str, role: str) -> None:
    """A wrong role is INVALID_ARGUMENT and changes nothing."""
    tenant, env = await _place(house)
    scopes = {"tenant": f"tenants/{tenant}", "project": f"tenants/{tenant}/projects/shop", "environment": env}
    user = await house.user()
    before = await house.everything()
    with refused("INVALID_ARGUMENT", "member.role", role):
        await house.member(scopes[level], user, role)
    assert await house.everything() == before


async def test_a_missing_user_or_level_is_not_found(house: House) -> None:
    """Each names what is missing; no tenant membership is left behind."""
    tenant, env = await _place(house)
    user = await house.user()
    before = await house.everything()
    with refused("NOT_FOUND", "users/ghost"):
        await house.member(env, "ghost", "READER")
    with refused("NOT_FOUND", f"tenants/{tenant}/projects/none"):
        await house.member(f"tenants/{tenant}/projects/none", user, "DEV")
    with refused("NOT_FOUND", f"{env}x"):
        await house.member(f"{env}x", user, "READER")
    assert await house.everything() == before


async def test_a_project_admin_rules_its_project_only(house: House) -> None:
    """It changes members of its project and its environments; the tenant's other members are none of its business."""
    tenant, env = await _place(house)
    lead, user = await house.user(), await house.user()
    await house.member(f"tenants/{tenant}/projects/shop", lead, "ADMIN")
    await house.member(env, user, "READER", by=lead)
    await house.member(f"tenants/{tenant}/projects/shop", user, "DEV", by=lead)
    with refused("NOT_FOUND"):
        await house.member(f"tenants/{tenant}", user, "ADMIN", by=lead)


async def test_members_are_listed_by_name_in_pages(house: House) -> None:
    """Every member of the level once, in order; a member of another level not at all."""
    tenant, env = await _place(house)
    names = sorted([await house.user() for _ in range(5)])
    for name in names:
        await house.member(f"tenants/{tenant}", name, "MEMBER")
    await house.member(env, names[0], "READER")
    request = member_service_pb2.ListMembersRequest(parent=f"tenants/{tenant}", page_size=2)
    seen = []
    while True:
        page = await house.call("MemberService/ListMembers", request)
        seen += [m.name.rsplit("/", 1)[1] for m in page.members]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert (seen, page.total_size) == (names, 5)
    one = await house.call("MemberService/GetMember", member_service_pb2.GetMemberRequest(name=f"{env}/members/{names[0]}"))
    assert one.role == one.READER
    with refused("NOT_FOUND"):
        await house.call("MemberService/GetMember", member_service_pb2.GetMemberRequest(name=f"{env}/members/{names[1]}"))


async def test_changes_of_rights_are_notified(house: House) -> None:
    """`grants` carries the user's uid when its memberships change, and `*` when a tenant is suspended."""
    tenant, env = await _place(house)
    user = await house.user()
    (row,) = await house.sql("SELECT uid FROM identity.users WHERE username = $1", user)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await house.database.listen("grants", heard.put_nowait)
    async with asyncio.timeout(10):
        assert await heard.get() == ""
        await house.member(env, user, "OPERATOR")
        assert await heard.get() == str(row["uid"])
        await house.sql("UPDATE tenancy.tenants SET state = 'SUSPENDED' WHERE name = $1", tenant)
        while await heard.get() != "*":
            pass
