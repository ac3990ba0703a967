"""Memory that is never more than a second behind, even when nobody tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from libs.clock import HeldClock, SystemClock
from libs.faults import Unavailable
from libs.pg import Database
from libs.run import Life
from services.gateway.identity.directory import Directory
from services.gateway.identity.recent import IDLE, Recent
from services.gateway.identity.tests.conftest import House
from tests.kit.eventually import eventually


@pytest.fixture
async def deaf(house: House) -> AsyncIterator[Directory]:
    """A directory to which no NOTIFY gets through: it polls only."""
    life = Life()
    async with life.stack:
        directory = Directory(house.database, SystemClock())
        await directory.refresh()
        life.spawn("deaf directory", directory.run())
        yield directory
        life.stopping.set()


async def _session(house: House) -> tuple[str, UUID]:
    signed_in = await house.sign_in(await house.user())
    _, name, _, session = signed_in.session.name.split("/")
    return name, UUID(session)


async def test_a_lost_notification_costs_a_second_at_most(house: House, deaf: Directory) -> None:
    """Without NOTIFY an ended session, a disabled user, a role and a membership arrive by the poll."""
    name, session = await _session(house)
    uid, tenant = await house.uid(name), await house.tenant()
    assert await deaf.session(session)
    assert await deaf.standing(uid)

    async def sees_tenant() -> bool:
        standing = await deaf.standing(uid)
        return standing is not None and standing.rights.scopes("tenancy.tenants.get").covers(f"tenants/{tenant}")

    assert not await sees_tenant()
    await house.member(name, "member", tenant)
    await eventually(sees_tenant, within=1.5, what="membership by poll")
    await house.sql("UPDATE identity.sessions SET ended = now() WHERE id = $1", session)

    async def ended() -> bool:
        return await deaf.session(session) is None

    await eventually(ended, within=1.5, what="session end by poll")
    await house.sql("UPDATE identity.users SET state = 'DISABLED' WHERE uid = $1", uid)

    async def disabled() -> bool:
        return await deaf.standing(uid) is None

    await eventually(disabled, within=1.5, what="disabled user by poll")


async def test_a_notification_drops_what_it_names_at_once(house: House) -> None:
    """Faster than the poll: well under its second."""
    name, session = await _session(house)
    directory = house.identity.directory
    assert await directory.session(session)
    await house.sql("UPDATE identity.sessions SET ended = now() WHERE id = $1", session)

    async def ended() -> bool:
        return await directory.session(session) is None

    await eventually(ended, within=0.5, every=0.01, what=f"session of {name} ended by NOTIFY")


async def test_suspending_a_tenant_takes_its_members_rights(house: House) -> None:
    """Within a second only the name is left; resuming gives them back."""
    name, tenant = await house.user("USER"), await house.tenant()
    await house.member(name, "admin", tenant)
    directory, uid = house.identity.directory, await house.uid(name)

    async def may(expected: bool) -> bool:
        standing = await directory.standing(uid)
        assert standing is not None
        assert standing.rights.scopes("tenancy.tenants.get").covers(f"tenants/{tenant}")
        return standing.rights.scopes("tenancy.projects.create").covers(f"tenants/{tenant}") is expected

    assert await may(True)
    await house.sql("UPDATE tenancy.tenants SET state = 'SUSPENDED' WHERE name = $1", tenant)
    await eventually(lambda: may(False), within=1, what="tenant suspended")
    await house.sql("UPDATE tenancy.tenants SET state = 'ACTIVE' WHERE name = $1", tenant)
    await eventually(lambda: may(True), within=1, what="tenant resumed")


async def test_groups_follow_environments_and_memberships(house: House) -> None:
    """A group comes with the environment on that cluster and goes with the membership; other clusters see none of it."""
    name, tenant = await house.user(), await house.tenant()
    (_, here), (_, elsewhere) = await house.cluster(tenant), await house.cluster(tenant)
    await house.member(name, "operator", tenant, "shop", "dev")
    principals = house.identity.principals
    assert await principals.groups(name, str(here)) == []
    await house.environment(tenant, "dev", here)

    async def groups(expected: list[str]) -> bool:
        return await principals.groups(name, str(here)) == expected

    await eventually(lambda: groups([f"gems:environment:{tenant}/shop/dev:operator"]), within=1, what="group gained")
    assert await principals.groups(name, str(elsewhere)) == []
    await house.sql("DELETE FROM tenancy.members WHERE tenant = $1", tenant)
    await eventually(lambda: groups([]), within=1, what="group lost")


async def test_an_environment_that_its_cluster_has_not_confirmed_gives_no_group_yet(house: House) -> None:
    """The others of the user's groups go on being sent, until its own comes with the cluster's word."""
    name, tenant = await house.user(), await house.tenant()
    _, here = await house.cluster(tenant)
    for environment in ("dev", "new"):
        await house.member(name, "operator", tenant, "shop", environment)
    await house.environment(tenant, "dev", here)
    await house.environment(tenant, "new", here, granted=False)
    old, new = (f"gems:environment:{tenant}/shop/{e}:operator" for e in ("dev", "new"))

    async def groups(*expected: str) -> bool:
        return await house.identity.principals.groups(name, str(here)) == list(expected)

    await eventually(lambda: groups(old), within=1, what="the confirmed one")
    await house.sql(
        "INSERT INTO fleet.granted (environment_uid, cluster_uid) SELECT uid, cluster_uid FROM tenancy.environments"
        " WHERE tenant = $1 AND name = 'new'", tenant,
    )  # fmt: skip
    await eventually(lambda: groups(old, new), within=1, what="both")


async def test_nobody_acts_as_a_disabled_or_unknown_user(house: House) -> None:
    """NOT_FOUND, never an empty principal."""
    name = await house.user()
    assert (await house.identity.principals.principal(name, str(uuid4()))).user == f"gems:user:{name}"
    await house.sql("UPDATE identity.users SET state = 'DISABLED' WHERE username = $1", name)

    async def refused() -> bool:
        try:
            await house.identity.principals.principal(name, str(uuid4()))
        except Exception as error:  # noqa: BLE001 -- its kind is what is asserted
            return type(error).__name__ == "NotFound"
        return False

    await eventually(refused, within=1)


async def test_clusters_come_and_go_with_the_tenants_quota(house: House) -> None:
    """A member sees its tenant's clusters by name, and none that the tenant may not use."""
    name, tenant = await house.user(), await house.tenant()
    await house.member(name, "member", tenant)
    directory, uid = house.identity.directory, await house.uid(name)
    cluster, cluster_uid = await house.cluster(tenant)

    async def sees(expected: bool) -> bool:
        standing = await directory.standing(uid)
        return standing is not None and standing.rights.scopes("fleet.clusters.get").covers(f"clusters/{cluster}") is expected

    await eventually(lambda: sees(True), within=1.5)
    await house.sql("DELETE FROM tenancy.quotas WHERE cluster_uid = $1", cluster_uid)
    await eventually(lambda: sees(False), within=1.5)


async def test_memory_is_not_believed_when_it_could_not_be_checked(house: House) -> None:
    """Without a read for a while each question goes to PostgreSQL; when that is away the answer is Unavailable, not yes."""
    name, session = await _session(house)
    uid = await house.uid(name)
    clock = HeldClock(SystemClock().now())
    away = await Database.connect(house.database._dsn, application_name="away", max_size=1)
    directory = Directory(away, clock)
    await directory.refresh()
    assert await directory.session(session)
    assert await directory.standing(uid)
    await away.close()
    assert await directory.session(session), "within the trust memory answers"
    clock.advance(timedelta(seconds=3))
    for question in (directory.session(session), directory.standing(uid)):
        with pytest.raises(Exception) as caught:
            await question
        assert isinstance(caught.value, Unavailable) or "closed" in str(caught.value).lower()


def test_what_is_unused_is_forgotten_and_the_number_is_bounded() -> None:
    """The longest unused goes first, by count and by age."""
    clock = HeldClock()
    recent: Recent[str] = Recent(clock, most=2)
    first, second, third = (UUID(int=n) for n in range(3))
    recent.put(first, "1")
    recent.put(second, "2")
    recent.get(first)
    recent.put(third, "3")
    assert recent.keys() == [first, third]
    clock.advance(timedelta(seconds=IDLE - 1))
    recent.get(first)
    clock.advance(timedelta(seconds=2))
    assert recent.keys() == [first]


def test_a_slow_read_does_not_overwrite_a_newer_one() -> None:
    """What was put after the read began stays; what was read as gone is forgotten; equal values keep their identity."""
    clock = HeldClock()
    recent: Recent[list[int]] = Recent(clock)
    kept, gone, newer = (UUID(int=n) for n in range(3))
    value = [1]
    recent.put(kept, value)
    recent.put(gone, [2])
    clock.advance(timedelta(seconds=1))
    started = clock.monotonic()
    recent.put(newer, [3])
    assert recent.replace([kept, gone, newer], {kept: [1], newer: [0]}, before=started)
    assert recent.get(kept) is value
    assert recent.get(gone) is None
    assert recent.get(newer) == [3]
