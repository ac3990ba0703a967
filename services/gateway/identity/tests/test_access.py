"""What the hub's services are told: keys, answers, and the stream of grants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from kubegems.identity.v1 import access_service_pb2 as pb
from libs.crypt import signing
from libs.faults import Invalid, NotFound, Unauthenticated
from services.gateway.identity.tests.conftest import WORKER, House
from services.gateway.identity.watching import HEARTBEAT
from tests.kit.eventually import eventually, timescale

Reply = pb.WatchGrantsResponse


@asynccontextmanager
async def _watching(house: House, username: str, session: str = "") -> AsyncIterator[Any]:
    call = house.open("AccessService/WatchGrants", peer=WORKER)
    async with aclosing(house.pipeline.stream(call, pb.WatchGrantsRequest(username=username, session=session))) as stream:
        yield stream


async def _next(stream: Any, within: float = 1.0) -> Reply:
    """The next message that is no heartbeat."""
    async with asyncio.timeout(within * timescale()):
        while True:
            message: Reply = await anext(stream)
            if message.kind != Reply.HEARTBEAT:
                return message


async def test_the_keys_verify_what_the_gateway_signs(house: House) -> None:
    """Key id and raw public key, newest first."""
    reply = await house.call("AccessService/ListCallerKeys", pb.ListCallerKeysRequest(), peer=WORKER)
    key = house.identity.caller_keys.signing
    assert reply.keys[0].kid == key.kid
    assert signing.signed_by(reply.keys[0].public_key, b"context", key.sign(b"context"))
    assert key.kid not in house.identity.access_keys.public, "users' tokens are signed with other keys"


async def _until(stream: Any, namespaces: list[str], within: float = 1.0) -> Reply:
    """The first snapshot that holds just these namespaces; others may come before it."""
    async with asyncio.timeout(within * timescale()):
        while True:
            message = await _next(stream, within)
            if sorted(s.namespace for s in message.scopes) == namespaces:
                return message


@pytest.mark.parametrize("peer", ["", "spiffe://kubegems/cluster/c1", "spiffe://other/hub/worker"])
async def test_only_hub_certificates_are_answered(house: House, peer: str) -> None:
    """No certificate, an agent's or a foreign one: refused, an admin's token beside it or not."""
    with pytest.raises(Unauthenticated):
        await house.call("AccessService/ListCallerKeys", pb.ListCallerKeysRequest(), await house.admin(), peer=peer)


async def test_access_is_checked_as_of_now(house: House) -> None:
    """By membership; no for unknown and disabled users; an unknown permission is a mistake of the asker."""
    name, tenant = await house.user(), await house.tenant()
    await house.member(name, "ops", tenant, "shop")

    async def allowed(username: str, permission: str, scope: str) -> bool:
        request = pb.CheckAccessRequest(username=username, permission=permission, scope=scope)
        return bool((await house.call("AccessService/CheckAccess", request, peer=WORKER)).allowed)

    shop = f"tenants/{tenant}/projects/shop"
    assert await allowed(name, "jobs.jobs.create", f"{shop}/environments/dev")
    assert not await allowed(name, "jobs.jobs.create", f"tenants/{tenant}")
    assert not await allowed(name, "jobs.jobs.create", "")
    assert await allowed("admin", "jobs.jobs.create", "")
    assert not await allowed("never-was", "jobs.jobs.create", shop)
    await house.sql("UPDATE identity.users SET state = 'DISABLED' WHERE username = $1", name)

    async def gone() -> bool:
        return not await allowed(name, "jobs.jobs.create", f"{shop}/environments/dev")

    await eventually(gone, within=1)
    with pytest.raises(Invalid):
        await allowed(name, "jobs.jobs.explode", shop)


async def test_a_watch_starts_with_all_and_then_beats(house: House) -> None:
    """The snapshot comes first; then a heartbeat at least every two seconds and nothing else."""
    name, tenant = await house.user(), await house.tenant()
    cluster, uid = await house.cluster(tenant)
    await house.environment(tenant, "dev", uid)
    await house.environment(tenant, "live", uid)
    await house.member(name, "reader", tenant, "shop", "dev")
    async with _watching(house, name) as stream:
        first = await _until(stream, [f"{tenant}-shop-dev"], 3)
        assert first.kind == Reply.SNAPSHOT
        assert not first.everything
        dev = f"tenants/{tenant}/projects/shop/environments/dev"
        assert [(s.name, s.cluster, s.cluster_uid) for s in first.scopes] == [(dev, f"clusters/{cluster}", str(uid))]
        assert list(first.job_scopes) == [dev]
        started = time.monotonic()
        assert (await anext(stream)).kind == Reply.HEARTBEAT
        assert HEARTBEAT * 0.5 < time.monotonic() - started < 2 * timescale()


async def test_others_changes_do_not_hold_heartbeats_back(house: House) -> None:
    """While every 50 ms somebody else's grants change, this watch still beats within two seconds."""
    name, other, tenant = await house.user(), await house.user(), await house.tenant()

    async def churn() -> None:
        while True:
            await house.member(other, "member", tenant)
            await house.sql("DELETE FROM tenancy.members WHERE tenant = $1", tenant)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(churn(), name="churn")
    try:
        async with _watching(house, name) as stream:
            assert (await anext(stream)).kind == Reply.SNAPSHOT
            for _ in range(2):
                async with asyncio.timeout(2 * timescale()):
                    assert (await anext(stream)).kind == Reply.HEARTBEAT
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_gained_and_lost_scopes_arrive_within_a_second(house: House) -> None:
    """Each change of membership or tenant state is a new snapshot."""
    name, tenant = await house.user(), await house.tenant()
    _, uid = await house.cluster(tenant)
    await house.environment(tenant, "dev", uid)
    dev = f"{tenant}-shop-dev"
    async with _watching(house, name) as stream:
        assert not (await _next(stream)).scopes
        await house.member(name, "operator", tenant, "shop", "dev")
        await _until(stream, [dev])
        await house.sql("UPDATE tenancy.tenants SET state = 'SUSPENDED' WHERE name = $1", tenant)
        await _until(stream, [])
        await house.sql("UPDATE tenancy.tenants SET state = 'ACTIVE' WHERE name = $1", tenant)
        await _until(stream, [dev])
        await house.sql("DELETE FROM tenancy.members WHERE tenant = $1", tenant)
        await _until(stream, [])


@pytest.mark.parametrize("role", ["ADMIN", "AUDITOR"])
async def test_platform_roles_see_everything_by_name(house: House, role: str) -> None:
    """`everything` is set, and all environments are listed so that places have names; a new one follows by itself."""
    tenant = await house.tenant()
    _, uid = await house.cluster(tenant)
    async with _watching(house, await house.user(role)) as stream:
        assert (await _next(stream)).everything
        await house.environment(tenant, "dev", uid)
        message = await _next(stream, 2)
        assert message.everything
        assert f"{tenant}-shop-dev" in [s.namespace for s in message.scopes]


async def test_a_watch_ends_with_its_session_its_user_or_its_name(house: House) -> None:
    """ENDED within a second, then the stream closes; a session of somebody else, or none at all, ends at once."""
    name = await house.user()
    signed_in, other = await house.sign_in(name), await house.sign_in(await house.user())
    session, foreign = (s.session.name.rsplit("/", 1)[-1] for s in (signed_in, other))
    async with _watching(house, name, session) as stream, _watching(house, name) as unbound:
        assert (await _next(stream)).kind == Reply.SNAPSHOT
        assert (await _next(unbound)).kind == Reply.SNAPSHOT
        await house.sql("UPDATE identity.sessions SET ended = now() WHERE id = $1::text::uuid", session)
        assert (await _next(stream)).kind == Reply.ENDED
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await house.sql("UPDATE identity.users SET state = 'DISABLED' WHERE username = $1", name)
        assert (await _next(unbound)).kind == Reply.ENDED
    for username, bad in (("never-was", ""), ("admin", foreign), ("admin", "no-uuid"), ("admin", session)):
        async with _watching(house, username, bad) as stream:
            assert (await _next(stream)).kind == Reply.ENDED


@asynccontextmanager
async def _watching_many(house: House) -> AsyncIterator[tuple[str, Any]]:
    """A watch's name, and its stream after that."""
    call = house.open("AccessService/WatchSessions", peer=WORKER)
    async with aclosing(house.pipeline.stream(call, pb.WatchSessionsRequest())) as stream:
        yield (await anext(stream)).watch, stream


async def _change(house: House, watch: str, *, add: Any = (), remove: Any = (), peer: str = WORKER) -> None:
    def these(sessions: Any) -> list[pb.WatchGrantsRequest]:
        return [pb.WatchGrantsRequest(username=name, session=session) for name, session in sessions]

    await house.call("AccessService/UpdateWatch", pb.UpdateWatchRequest(watch=watch, add=these(add), remove=these(remove)), peer=peer)


async def _told(stream: Any, count: int, within: float = 1.0) -> list[tuple[str, Any, list[str]]]:
    """The next so many sessions that something is told of: user, kind, namespaces."""
    found: list[tuple[str, Any, list[str]]] = []
    async with asyncio.timeout(within * timescale()):
        while len(found) < count:
            for one in (await anext(stream)).sessions:
                found.append((one.of.username, one.grants.kind, [s.namespace for s in one.grants.scopes]))
    return sorted(found)


async def test_one_stream_tells_of_many_sessions(house: House) -> None:
    """Each added session has its snapshot; a change is told of its own session alone; one that is taken out is told of no more."""
    one, two, tenant = await house.user(name="many-one"), await house.user(name="many-two"), await house.tenant()
    _, uid = await house.cluster(tenant)
    await house.environment(tenant, "dev", uid)
    dev = f"{tenant}-shop-dev"
    async with _watching_many(house) as (watch, stream):
        await _change(house, watch, add=[(one, ""), (two, "")])
        assert await _told(stream, 2, 3) == [(one, Reply.SNAPSHOT, []), (two, Reply.SNAPSHOT, [])]
        await house.member(two, "reader", tenant, "shop", "dev")
        assert await _told(stream, 1) == [(two, Reply.SNAPSHOT, [dev])]
        await _change(house, watch, remove=[(two, "")])
        await house.sql("DELETE FROM tenancy.members WHERE tenant = $1", tenant)
        await house.member(one, "reader", tenant, "shop", "dev")
        assert await _told(stream, 1) == [(one, Reply.SNAPSHOT, [dev])]


async def test_the_end_of_one_session_leaves_the_others_watched(house: House) -> None:
    """ENDED within a second for that session, at once for what is none; heartbeats go on within two seconds."""
    name = await house.user()
    signed_in = await house.sign_in(name)
    session = signed_in.session.name.rsplit("/", 1)[-1]
    async with _watching_many(house) as (watch, stream):
        await _change(house, watch, add=[(name, session), (name, ""), (name, "no-uuid"), ("never-was", "")])
        kinds = sorted(kind for _, kind, _ in await _told(stream, 4, 3))
        assert kinds == [Reply.SNAPSHOT, Reply.SNAPSHOT, Reply.ENDED, Reply.ENDED]
        await house.sql("UPDATE identity.sessions SET ended = now() WHERE id = $1::text::uuid", session)
        assert await _told(stream, 1) == [(name, Reply.ENDED, [])]
        for _ in range(2):
            async with asyncio.timeout(2 * timescale()):
                assert not (await anext(stream)).sessions


async def test_a_watch_is_changed_only_by_the_service_that_opened_it(house: House) -> None:
    """Another service, or a name that is no watch: NOT_FOUND; after the stream's end too."""
    async with _watching_many(house) as (watch, _):
        for name, peer in ((watch, "spiffe://kubegems/hub/msgbus"), ("never-was", WORKER)):
            with pytest.raises(NotFound):
                await _change(house, name, peer=peer)
        await _change(house, watch)
    with pytest.raises(NotFound):
        await _change(house, watch)
